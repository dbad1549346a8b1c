"""Samples in batches.

What a position has is a function of it. A loader therefore has no state: it is made to begin at any position, and gives
the same batches whatever its number of workers; those of several ranks are together those of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mmformer.data.collate import Collate, Sample
from mmformer.data.dataset import MixedDataset, SampleDataset
from mmformer.data.order import OrderSpec
from mmformer.data.sources import DataSpec
from mmformer.data.workers import read_on
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextEncoder


class PositionBatches(Sampler[list[int]]):
    """The positions of some batches, one after the other; of several ranks, those in one's own lanes.

    Position p belongs to lane p mod lanes, and their number is a multiple of the ranks'.

    Its length is that of the whole run, with the batches before ``start``: Lightning takes up its own count of batches
    where a resumed run does, and would otherwise end its epoch too early and begin again at ``start``.
    """

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.start, self.stop, self.batch_size, self.rank, self.ranks = start, stop, batch_size, rank, ranks

    def __len__(self) -> int:
        return -(-self.stop // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch_size):
            batch = range(first, min(first + self.batch_size, self.stop))
            yield [position for position in batch if position % self.ranks == self.rank]


class Turns(Sampler[list[int]]):
    """The positions of a split's batches, which ranks take by turns: rank r those of the numbers r, r + ranks, …

    Each rank has as many, since a sharded model is computed by all of them at once: where the last turn has too few
    batches, the first one is there again.
    """

    def __init__(self, samples: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.samples, self.batch_size, self.rank, self.ranks = samples, batch_size, rank, ranks

    @property
    def batches(self) -> int:
        """How many there are in all, each counted once."""
        return -(-self.samples // self.batch_size)

    def __len__(self) -> int:
        return -(-self.batches // self.ranks)

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            number = turn * self.ranks + self.rank
            first = number * self.batch_size if number < self.batches else 0
            yield list(range(first, min(first + self.batch_size, self.samples)))


def training_loader(
    spec: DataSpec,
    encoders: Mapping[str, TextEncoder],
    seed: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Sample]:
    """The batches of updates ``first_step`` to ``steps - 1``: update u covers positions u × batch_size onwards.

    Of several ranks, each reads its part of every batch.

    Raises:
        InputError: the data cannot be read, or there is less of it than one batch.
    """
    dataset = MixedDataset(spec, seed)
    for members in dataset.mixture.members:
        held = sum(len(dataset.sources[source]) for source in members)
        if held < spec.batch_size:
            where = " and ".join(f"'{spec.each()[source].train}' of {spec.each()[source].source}" for source in members)
            raise InputError(
                f"data.batch_size is {spec.batch_size}, but the split {where} has {held} samples: a batch would have "
                f"some of them twice. Set data.batch_size to {held} or less."
            )
    first, last = first_step * spec.batch_size, steps * spec.batch_size
    batches = PositionBatches(first, last, spec.batch_size, rank, ranks)
    return _loader(dataset, batches, Collate(spec, encoders, seed, training=True), spec.workers)


def evaluation_loader(
    spec: DataSpec,
    split: str,
    encoders: Mapping[str, TextEncoder],
    skips: bool = False,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Sample]:
    """Every sample of a split once, in the shards' order, as it is; of several ranks, each has its ``Turns``.

    Args:
        skips: whether others stand in for damaged samples, where they are learned from and not measured on.
    """
    dataset = SampleDataset(spec, split, OrderSpec(shuffle=False), seed=0, training=False, skips=skips)
    batches = Turns(len(dataset), spec.evaluation_batch_size, rank, ranks)
    # Held-out splits are read between training steps: a second set of workers would fight over the same cores.
    return _loader(dataset, batches, Collate(spec, encoders, 0, training=False), workers=0)


def _loader(
    dataset: Dataset[Sample], batches: Sampler[list[int]], collate: Collate, workers: int
) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=read_on,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the loader would otherwise draw from the global stream that dropout uses.
        generator=torch.Generator().manual_seed(0),
    )
