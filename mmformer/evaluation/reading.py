"""The samples of a split as batches to measure on; of several processes, each reads every so many'th batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.utils.data import DataLoader

from mmformer.data.caption import lookup
from mmformer.data.collate import Collate
from mmformer.data.dataset import SampleDataset
from mmformer.data.decode import decode
from mmformer.data.order import OrderSpec
from mmformer.data.samples import Samples
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch


def open_split(data: DataSpec, split: str) -> SampleDataset:
    """The samples of a split, as they are, in the order of the shards."""
    return SampleDataset(data, split, OrderSpec(shuffle=False), seed=0, training=False)


def batches(
    data: DataSpec,
    split: str,
    encoders: Mapping[str, TextEncoder],
    references: str = "",
    part: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """The batches of a split, or every ``parts``'th of them from the number ``part`` on.

    They are cut the same for any number of parts, so that their numbers are.

    Args:
        references: member and field of all texts that are right for a sample, such as ``json:captions``; "": none.
    """
    dataset = open_split(data, split)
    size = data.evaluation_batch_size
    positions = [list(range(first, min(first + size, len(dataset)))) for first in range(0, len(dataset), size)]
    collate = Collate(data, encoders, 0, training=False)
    own = positions[part::parts]
    for batch in DataLoader(dataset, batch_sampler=own, collate_fn=collate, num_workers=data.workers):
        if references:
            numbers = batch.positions.tolist()
            batch = batch._replace(references=tuple(read_references(dataset.reader, n, references) for n in numbers))
        yield batch


def read_references(samples: Samples, number: int, where: str) -> tuple[str, ...]:
    """All texts that are right for a sample.

    Raises:
        InputError: the sample lacks them, or they are no texts.
    """
    member, _, path = where.partition(":")
    raw = samples[number]
    if member not in raw.members:
        raise InputError(f"{raw.key} has no member '{member}', which data.references asks for.")
    value = lookup(decode(member, raw.members[member], f"{raw.key}.{member}"), path, raw.key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{raw.key}: data.references '{where}' must be a list of texts, but is {value!r:.60}.")
    return tuple(texts)
