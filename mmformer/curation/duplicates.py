"""Of samples that are alike, one stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmformer.curation.candidates import Candidates
from mmformer.curation.filter import KEPT, Filter, Verdict, removed
from mmformer.curation.likeness import ExactLikeness, Likeness
from mmformer.data.scores import read_scores


@dataclass(frozen=True)
class Duplicates(Filter):
    """Removes what is like a sample that stays.

    Attributes:
        by: when two samples are alike; several likenesses are applied one after the other.
        scores: a table of scores, by which the best of each group stays; None: the first does.
    """

    name: ClassVar[str] = "duplicates"

    by: tuple[Likeness, ...] = (ExactLikeness(),)
    scores: str | None = None

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        order = list(range(len(samples)))
        keys = samples.keys
        if self.scores is not None:
            scores = read_scores(Path(self.scores), samples.split, keys)
            order.sort(key=scores.__getitem__, reverse=True)  # stable: the first of equal ones is the first
        verdicts = [KEPT] * len(order)
        for likeness in self.by:
            found = likeness.within(likeness.prints(samples), order)
            for row, match in found.items():
                verdicts[row] = removed(likeness.reason, f"{match.how}: '{keys[match.row]}'")
            order = [row for row in order if row not in found]
        return verdicts
