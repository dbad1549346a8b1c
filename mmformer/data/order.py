"""Which sample stands at a position: a pure function of the seed, the manifest's counts and the position.

Positions count samples in the global order: update ``u`` of a global batch ``B`` covers ``u * B`` to ``u * B + B - 1``.
Position ``p`` belongs to lane ``p % lanes``. A lane owns whole shards and reads them one after the other, shuffled
within blocks, so that a rank that takes some of the lanes needs only their shards. No state is kept but caches: any
position can be asked for at once, which is all that resuming takes.

Each lane reads each of its samples exactly once in each of its epochs, and every sample is in one lane:

1. ``_share_out`` hands every shard that holds samples to one lane. A lane's epoch has as many turns as these shards
   hold samples, n, and goes through the indices 0 to n - 1.
2. Blocks cut these indices into intervals. In the interval from s to e, index i becomes s + π(i - s), with π an order
   of ``range(e - s)`` (``mmformer.data.shuffle``): a bijection of the interval. All of them make one of 0 to n - 1.
3. The lane's shards, in the order σ of the epoch, cut the same indices into intervals of their counts, one after the
   other. Index j becomes the shard whose interval it is in, and its distance from where that begins: a bijection from
   the indices to the pairs of a shard of the lane and a row of it.

So does an epoch without shuffling, where π and σ change nothing.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.data.seeding import derive
from mmformer.data.shuffle import Shuffle, shuffle
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
    """See :class:`OrderSpec`.

    Memory is a table of the shards, 12 bytes each, and for each lane that is read two of its epochs: 8 bytes a shard of
    the lane, and of two blocks what ``mmformer.data.shuffle`` takes, 8 KiB each at most. Samples take none.
    """

    def __init__(self, spec: OrderSpec, counts: Sequence[int] | NDArray[np.int64], seed: int) -> None:
        self.spec = spec
        self.seed = int(seed)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.shards = _share_out(self.counts, spec.lanes)
        """For each lane, the indices of its shards, ascending."""
        self.lengths = tuple(int(self.counts[shards].sum()) for shards in self.shards)
        """For each lane, the samples of one of its epochs."""
        self._epochs: dict[tuple[int, int], _Epoch] = {}

    def __len__(self) -> int:
        """The number of different samples."""
        return sum(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers get the arguments, not the caches.
        return Order, (self.spec, self.counts, self.seed)

    def locate(self, position: int) -> Place:
        """The place of the sample at a position, from 0 without end; each lane's epochs follow each other.

        Raises:
            InputError: the position is negative.
        """
        if position < 0:
            raise InputError(f"Position {position} was asked for, but positions start at 0.")
        turn, lane = divmod(int(position), self.spec.lanes)
        number, index = divmod(turn, self.lengths[lane])
        # A lane's reader looks ahead by a little: two of its epochs are at hand, and two blocks of each.
        epoch = self._epochs.get((lane, number & 1))
        if epoch is None or epoch.number != number:
            epoch = self._epochs[lane, number & 1] = _Epoch(self, lane, number)
        return epoch.locate(index)

    def turns_past(self, shard: int) -> int:
        """So many turns after one that reads a shard, its lane is past the shard, or in another epoch."""
        # A sample may be read a block before its own place, and what stands a block further on, a block later.
        return int(self.counts[shard]) + (2 * self.spec.block if self.spec.shuffle else 0)


class _Epoch:
    """One epoch of one lane."""

    __slots__ = ("_blocks", "_ends", "_order", "_shards", "lane", "length", "number", "phase", "seed", "size")

    def __init__(self, order: Order, lane: int, number: int) -> None:
        self.number, self.lane, self.seed, self.length = number, lane, order.seed, order.lengths[lane]
        self.size = order.spec.block if order.spec.shuffle else 0
        shards, self.phase = order.shards[lane], 0
        self._order: Shuffle | range = range(len(shards))
        if self.size:
            self._order = shuffle(len(shards), self.seed, "order.shards", lane, number)
            if self.length > self.size:
                # Blocks start elsewhere in every epoch: in a large shard the same samples would always share a block.
                self.phase = derive(self.seed, "order.phase", lane, number) % self.size
        self._shards = shards.data  # of whose items Python makes numbers fastest
        self._ends = np.cumsum(order.counts[shards[np.asarray(self._order)]]).data
        self._blocks: list[_Block | None] = [None, None]

    def locate(self, index: int) -> Place:
        if self.size:
            number = (index + self.phase) // self.size
            block = self._blocks[number & 1]
            if block is None or block.number != number:
                block = self._blocks[number & 1] = self._shuffle(number)
            index = block.start + block.rows[index - block.start]
        at = bisect_right(self._ends, index)
        return Place(self.number, self._shards[self._order[at]], index - self._ends[at - 1] if at else index)

    def _shuffle(self, number: int) -> _Block:
        """A block; the first and the last may be short."""
        start = max(0, number * self.size - self.phase)
        end = min(self.length, (number + 1) * self.size - self.phase)
        return _Block(number, start, shuffle(end - start, self.seed, "order.block", self.lane, self.number, number))


class _Block(NamedTuple):
    """Consecutive indices of an epoch that are shuffled among each other."""

    number: int
    start: int
    rows: Shuffle


def _share_out(counts: NDArray[np.int64], lanes: int) -> tuple[NDArray[np.int32], ...]:
    """Gives each shard, largest first, to the lane with the fewest samples; shards without samples to none."""
    if counts.ndim != 1 or (counts < 0).any():
        raise InputError(f"The counts of the shards must be a list of numbers from 0 up, not {counts.tolist()!r:.200}.")
    filled = int(np.count_nonzero(counts))
    if not filled:
        raise InputError(f"There is nothing to read: {len(counts)} shards hold 0 samples. Check the split's name.")
    if lanes > filled:
        raise InputError(
            f"order.lanes is {lanes}, but only {filled} of the {len(counts)} shards hold samples, and each lane needs "
            f"at least one: set order.lanes to {filled} or less, or write the data again as {lanes} shards or more."
        )
    # Of a million shards, arrays are large: small types, and few of them at a time.
    largest = np.argsort(-counts, kind="stable")[:filled].astype(np.int32)
    owners = np.full(len(counts), lanes, np.min_scalar_type(lanes))  # that of a shard without samples is none
    owners[largest] = _owners(counts[largest], lanes)
    ends = np.cumsum(np.bincount(owners, minlength=lanes))[: lanes - 1]
    return tuple(np.split(np.argsort(owners, kind="stable")[:filled].astype(np.int32), ends))


def _owners(sizes: NDArray[np.int64], lanes: int) -> NDArray[np.int32]:
    """The lane of each shard, of sizes that never grow: the one that has the least, of several the first."""
    owners = np.arange(len(sizes), dtype=np.int32) % np.int32(lanes)  # of equal sizes, that is each lane in turn
    same = int(np.count_nonzero(sizes == sizes[0]))
    if same < len(sizes):
        # What a lane has, and its number, in one: the smallest is the one that comes next.
        had = np.bincount(owners[:same], minlength=lanes) * sizes[0]
        waiting: list[int] = [int(size) * lanes + lane for lane, size in enumerate(had)]
        heapq.heapify(waiting)
        for at, size in enumerate(sizes[same:].data, same):
            least = waiting[0]
            owners[at] = least % lanes
            heapq.heapreplace(waiting, least + size * lanes)
    return owners
