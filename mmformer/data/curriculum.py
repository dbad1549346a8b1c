"""Easy samples first: what a run sees at its beginning, by a score of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmformer.data.order import Order
from mmformer.data.samples import Samples
from mmformer.data.scores import read_scores
from mmformer.errors import InputError
from mmformer.spec import require

_MOST = 10_000
"""Places that are looked at before it is an error that none is easy enough."""


@dataclass(frozen=True)
class CurriculumSpec:
    """A share of the samples that grows to all of them, those with the best scores first (Bengio et al. 2009, §4).

    Attributes:
        scores: a table with the columns key, split and score, as ``mmformer curate`` writes it, or its folder.
        updates: after which all samples are seen.
        begin: the share at the start.
        lowest: low scores are the easy ones.
    """

    scores: str
    updates: int
    begin: float = 0.3
    lowest: bool = False

    def __post_init__(self) -> None:
        require(self.updates >= 1, self, "updates", "at least 1")
        require(0 < self.begin < 1, self, "begin", "above 0 and below 1")

    def share(self, update: int) -> float:
        """The share that an update, from 0, may see."""
        return self.begin + (1 - self.begin) * min(1.0, update / self.updates)


class Curriculum:
    """Where samples stand that are easy enough: a function of the place and the update, as the order is.

    Args:
        spec: see there.
        samples: those of the split.
        split: its name.
        order: of them.
        batch_size: samples of one update.

    Raises:
        InputError: the table is broken, or lacks a sample.
    """

    def __init__(self, spec: CurriculumSpec, samples: Samples, split: str, order: Order, batch_size: int) -> None:
        self.spec, self.order = spec, order
        lanes = order.spec.lanes
        # The same row an update later: the next places are those of the batch's other samples.
        self._stride = lanes * -(-batch_size // lanes)
        scores = np.array(read_scores(Path(spec.scores), split, samples.keys))
        ranks = np.empty(len(scores))
        ranks[np.argsort(scores if spec.lowest else -scores, kind="stable")] = np.arange(len(scores)) / len(scores)
        self._ranks: NDArray[np.float64] = ranks  # from 0, the easiest, to below 1
        self._starts = np.concatenate(([0], np.cumsum(samples.counts)))

    def place(self, place: int, update: int) -> int:
        """This place, or the first one whole updates later in its lane, whose sample an update may see.

        Raises:
            InputError: the lane has none.
        """
        share = self.spec.share(update)
        if share >= 1:
            return place
        for later in range(place, place + _MOST * self._stride, self._stride):
            _, part, row = self.order.locate(later)
            if self._ranks[self._starts[part] + row] < share:
                return later
        raise InputError(
            f"CurriculumSpec.begin is {self.spec.begin:g}, but some lane of the order has no sample among that share "
            f"of the best scores: raise it, or lower order.lanes."
        )
