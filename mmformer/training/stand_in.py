"""Batches of the shapes that a run's are: nothing is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.run import RunSpec
from mmformer.types import Audio, Batch, Mixed, Patches, Text

Make = Callable[..., Tensor]
"""Makes a tensor of a shape and a ``dtype``: a picture's or a sound's."""


class Lengths(NamedTuple):
    """What the data alone can say. The samples of a batch have them by turns; none are said: the longest that fit."""

    text: tuple[int, ...] = ()  # ids of the texts that encoders read
    target: tuple[int, ...] = ()  # and of those that decoders write; none: as ``text``, where there is one
    seconds: tuple[float, ...] = ()  # of the sounds


def stand_in(run: RunSpec, source: DataSpec, number: int, lengths: Lengths, make: Make) -> Batch:
    """A batch of so many samples of a source.

    Args:
        make: pictures and sounds.

    Raises:
        InputError: a text that is longer than the model reads.
    """
    labels = {name: torch.zeros(number, dtype=torch.int64) for name in source.labels}
    image, mixed = None, None
    if source.image is not None:
        image = _image(source.image.transform, number, make)
        mixed = _mixed(source.image, labels, number)
    read = {e.tokenizer for e in run.model.encoders.values() if isinstance(e.tokenizer, TextTokensSpec)}
    written = {decoder.tokenizer for decoder in run.model.decoders.values()}
    text, target = None, None
    if source.text is not None:
        text = _text(next(iter(read or written)), number, lengths.text, "text")
    if source.target is not None:
        target = _text(next(iter(written or read)), number, lengths.target or lengths.text, "target")
    return Batch(
        tuple(map(str, range(number))),
        labels,
        image,
        text,
        None if source.audio is None else _audio(source.audio, number, lengths.seconds, make),
        target,
        torch.arange(number),
        mixed=mixed,
    )


def _image(transform: ImageTransformSpec, number: int, make: Make) -> Tensor | Patches:
    height, width = transform.size
    if transform.fit != "native":
        return make(number, 3, height, width, dtype=torch.uint8)
    assert transform.patch is not None, "the spec requires it"
    grid = torch.tensor([[height // transform.patch, width // transform.patch]]).expand(number, 2)
    pixels = (number, int(grid[0].prod()), 3, transform.patch, transform.patch)
    return Patches(make(*pixels, dtype=torch.uint8), grid)


def _mixed(image: ImageInputSpec, labels: dict[str, Tensor], number: int) -> Mixed | None:
    return None if image.mix is None else Mixed(dict(labels), torch.full((number,), 0.5))


def _text(tokenizer: TextTokensSpec, number: int, lengths: tuple[int, ...], name: str) -> Text:
    """Ids that are no special ones, so many in each row."""
    most = tokenizer.context_length
    if lengths and not 1 <= min(lengths) <= max(lengths) <= most:
        raise InputError(
            f"the lengths of {name}, {', '.join(map(str, lengths))}, have to be 1 to {most}, the tokenizer's "
            f"context_length: the model reads no longer ones."
        )
    rows = torch.tensor(list(islice(cycle((most,) if tokenizer.padded or not lengths else lengths), number)))
    length = min(-(-int(rows.max()) // 8) * 8, most)
    special = tokenizer.words().ids
    plain = next(index for index in range(len(special.all) + 1) if index not in special.all)
    ids = torch.full((number, length), plain)  # B L
    return Text(ids, rows, begun=tokenizer.begin and special.bos is not None)


def _audio(audio: AudioInputSpec, number: int, seconds: tuple[float, ...], make: Make) -> Audio:
    transform = audio.transform
    given = [min(transform.most, max(1, int(each * transform.rate))) for each in seconds] or [transform.most]
    rows = torch.tensor(list(islice(cycle(given), number)))
    return Audio(make(number, int(rows.max())), rows, transform.rate)
