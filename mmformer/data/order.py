"""Which sample stands at a position: a pure function of the seed, the manifest's counts and the position.

Positions count samples in the global order: update ``u`` of a global batch ``B`` covers ``u * B`` to ``u * B + B - 1``.
Position ``p`` belongs to lane ``p % lanes``. A lane owns whole shards and reads them one after the other, shuffled
within blocks, so that a rank that takes some of the lanes needs only their shards. No state is kept but caches: any
position can be asked for at once, which is all that resuming takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.data.seeding import derive, permutation
from mmformer.errors import InputError
from mmformer.spec import require


class Place(NamedTuple):
    """Where the sample of a position lies."""

    epoch: int  # passes that its lane has finished before
    shard: int  # index into the manifest's table of shards
    row: int  # index into that shard


@dataclass(frozen=True)
class OrderSpec:
    """How samples are put in order.

    Attributes:
        lanes: sequences that run side by side. The order depends on it, so it is chosen once per run, as a multiple of
            every number of data-parallel ranks that the run may ever use; each lane needs at least one shard.
        block: samples among which a lane shuffles. A whole epoch is shuffled where it is not longer than a block. Left
            alone without shuffling.
        shuffle: False reads every lane in the manifest's order, epoch after epoch.
    """

    lanes: int = 1
    block: int = 4096
    shuffle: bool = True

    def __post_init__(self) -> None:
        require(self.lanes >= 1, self, "lanes", "at least 1")
        require(self.block >= 1, self, "block", "at least 1")
        read = self.shuffle or self.block == OrderSpec.block
        require(read, self, "block", "left alone where shuffle is false, which reads no blocks")

    def build(self, counts: Sequence[int], seed: int) -> Order:
        """The order over shards with these counts of samples.

        Raises:
            InputError: there are no samples, or fewer shards with samples than lanes.
        """
        return Order(self, counts, seed)


class Order:
    """See :class:`OrderSpec`. Memory grows with the shards and with ``lanes * block``, not with the samples."""

    def __init__(self, spec: OrderSpec, counts: Sequence[int], seed: int) -> None:
        self.spec = spec
        self.seed = int(seed)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.shards = _share_out(self.counts, spec.lanes)
        """For each lane, the indices of its shards, ascending."""
        self.lengths = tuple(int(self.counts[shards].sum()) for shards in self.shards)
        """For each lane, the samples of one of its epochs."""
        # A reader walks through all its lanes in turn: a cache that held fewer entries would never hit.
        self._block = lru_cache(spec.lanes + 2)(self._shuffle_block)
        self._epoch = lru_cache(spec.lanes + 2)(self._begin_epoch)

    def __len__(self) -> int:
        """The number of different samples."""
        return sum(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers get the arguments, not the caches.
        return Order, (self.spec, self.counts.tolist(), self.seed)

    def locate(self, position: int) -> Place:
        """The place of the sample at a position, from 0 without end; each lane's epochs follow each other.

        Raises:
            InputError: the position is negative.
        """
        if position < 0:
            raise InputError(f"Position {position} was asked for, but positions start at 0.")
        turn, lane = divmod(int(position), self.spec.lanes)
        epoch, index = divmod(turn, self.lengths[lane])
        shards, ends, phase = self._epoch(lane, epoch)
        if self.spec.shuffle:
            block, offset = divmod(index + phase, self.spec.block)
            index = int(self._block(lane, epoch, block)[offset if block else offset - phase])
        at = int(np.searchsorted(ends, index, side="right"))
        row = index - (int(ends[at - 1]) if at else 0)
        return Place(epoch, int(shards[at]), row)

    def _begin_epoch(self, lane: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """A lane's shards in the order of one epoch, the running sum of their counts, and where its blocks begin."""
        shards, phase = self.shards[lane], 0
        if self.spec.shuffle:
            shards = shards[permutation(len(shards), self.seed, "order.shards", lane, epoch)]
            if self.lengths[lane] > self.spec.block:
                # Blocks start elsewhere in every epoch: in a large shard the same samples would always share a block.
                phase = derive(self.seed, "order.phase", lane, epoch) % self.spec.block
        return shards, np.cumsum(self.counts[shards]), phase

    def _shuffle_block(self, lane: int, epoch: int, block: int) -> NDArray[np.int64]:
        """The shuffled indices, into its lane's epoch, of one block; the first and the last may be short."""
        phase = self._epoch(lane, epoch)[2]
        start = max(0, block * self.spec.block - phase)
        end = min(self.lengths[lane], (block + 1) * self.spec.block - phase)
        return start + permutation(end - start, self.seed, "order.block", lane, epoch, block)


def _share_out(counts: NDArray[np.int64], lanes: int) -> tuple[NDArray[np.int64], ...]:
    """Gives each shard, largest first, to the lane with the fewest samples; shards without samples to none."""
    if counts.ndim != 1 or (counts < 0).any():
        raise InputError(f"The counts of the shards must be a list of numbers from 0 up, not {counts.tolist()!r:.200}.")
    filled = int((counts > 0).sum())
    if not filled:
        raise InputError(f"There is nothing to read: {len(counts)} shards hold 0 samples. Check the split's name.")
    if lanes > filled:
        raise InputError(
            f"order.lanes is {lanes}, but only {filled} of the {len(counts)} shards hold samples, and each lane needs "
            f"at least one: set order.lanes to {filled} or less, or write the data again as {lanes} shards or more."
        )
    owned: list[list[int]] = [[] for _ in range(lanes)]
    waiting = [(0, lane) for lane in range(lanes)]
    for shard in np.argsort(-counts, kind="stable")[:filled].tolist():
        total, lane = waiting[0]
        owned[lane].append(shard)
        heapq.heapreplace(waiting, (total + int(counts[shard]), lane))
    return tuple(np.array(sorted(shards), dtype=np.int64) for shards in owned)
