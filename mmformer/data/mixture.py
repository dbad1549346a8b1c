"""Several sources in one run: which of them stands at a position, and which of its own samples.

Sources that hold the same things are mixed within every batch. Those that hold other things take turns by whole
batches, so that what an update reads is the same for all of its samples and on all ranks. Either way, shares are exact
over a period and spread evenly within it, and the place of any position is known without counting up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.errors import InputError

PERIOD = 4096
"""Turns after which an interleaving repeats: weights act to that precision."""


class Turn(NamedTuple):
    """Whose turn it is."""

    chosen: int  # index of the one
    had: int  # turns that it has had before


class Interleaving:
    """Several that take turns, each as often as its weight says.

    Args:
        weights: positive; only their proportions count.
        period: turns after which it repeats; at least as many as there are weights.

    Raises:
        InputError: a weight is so small that it would have no turn.
    """

    def __init__(self, weights: Sequence[float], period: int = PERIOD) -> None:
        self.period = period if len(weights) > 1 else 1
        self.counts = _apportion(np.asarray(weights, np.float64), self.period)
        if not self.counts.all():
            raise InputError(
                f"The weights {', '.join(f'{weight:g}' for weight in weights)} differ so much that the smallest would "
                f"have less than one turn in {self.period}: raise it, or leave its source out."
            )
        # The j-th of n turns would best be at (j + 1/2) / n of the period.
        owner = np.repeat(np.arange(len(weights)), self.counts)
        wished = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        self._turns: NDArray[np.int64] = owner[np.argsort(wished, kind="stable")]
        self._before = np.empty(self.period, np.int64)
        for one in range(len(weights)):
            self._before[self._turns == one] = np.arange(self.counts[one])

    def at(self, turn: int) -> Turn:
        """Who has a turn, from 0 without end."""
        periods, place = divmod(turn, self.period)
        chosen = int(self._turns[place])
        return Turn(chosen, periods * int(self.counts[chosen]) + int(self._before[place]))


def _apportion(weights: NDArray[np.float64], seats: int) -> NDArray[np.int64]:
    """Whole numbers in the proportions of weights, by largest remainders; their sum is that of the seats."""
    exact = weights / weights.sum() * seats
    counts = np.floor(exact).astype(np.int64)
    left = np.argsort(counts - exact, kind="stable")[: seats - counts.sum()]
    counts[left] += 1
    apportioned: NDArray[np.int64] = counts
    return apportioned


class Place(NamedTuple):
    """Where a position's sample comes from."""

    source: int
    position: int  # in the source's own order


class Mixture:
    """From a position of the run to a source and a position in its order.

    Position p is in lane p mod lanes, and so is the source's own position: a rank that reads some lanes of the run
    reads the same lanes of every source.

    Args:
        weights: of the sources: shares of the samples.
        kinds: of the sources; those of one kind share batches, and kinds take turns.
        batch_size: samples of one update.
        lanes: of every source's order.

    Raises:
        InputError: the lanes do not divide the batch.
    """

    def __init__(self, weights: Sequence[float], kinds: Sequence[object], batch_size: int, lanes: int) -> None:
        self.batch_size, self.lanes = batch_size, lanes
        self.alone = len(weights) == 1
        if not self.alone and batch_size % lanes:
            raise InputError(
                f"data.batch_size is {batch_size}, which data.order.lanes, {lanes}, does not divide, but sources are "
                f"mixed in units of all lanes: take a multiple of {lanes}."
            )
        self.members = [[i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]
        """Kind -> its sources."""
        self._kinds = Interleaving([sum(weights[i] for i in members) for members in self.members])
        self._within = [Interleaving([weights[i] for i in members]) for members in self.members]

    def locate(self, position: int) -> Place:
        """The place of a position, from 0 without end."""
        if self.alone:
            return Place(0, position)
        update, row = divmod(position, self.batch_size)
        unit, lane = divmod(row, self.lanes)
        kind = self._kinds.at(update)
        turn = self._within[kind.chosen].at(kind.had * (self.batch_size // self.lanes) + unit)
        return Place(self.members[kind.chosen][turn.chosen], turn.had * self.lanes + lane)

    def kind(self, update: int) -> int:
        """Which kind an update has, from 0 in the order of the sources."""
        return self._kinds.at(update).chosen

    def first_updates(self) -> list[int]:
        """The first update of each kind."""
        first: dict[int, int] = {}
        update = 0
        while len(first) < len(self.members):
            first.setdefault(self.kind(update), update)
            update += 1
        return [first[kind] for kind in range(len(self.members))]
