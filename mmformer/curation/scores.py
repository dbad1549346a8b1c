"""Where a table of scores is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmformer.curation.filter import Verdict, removed
from mmformer.errors import InputError
from mmformer.spec import require


@dataclass(frozen=True)
class Cut:
    """Which samples stay by their scores.

    Attributes:
        keep: this fraction, those of the best scores; None: by ``least``.
        least: those whose score is at least this, or at most where low scores are good; None: by ``keep``.
        lowest: low scores are the good ones.
    """

    keep: float | None = None
    least: float | None = None
    lowest: bool = False

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.least is None):
            raise InputError("Say either which fraction of the samples to keep, or which score is good enough.")
        require(self.keep is None or 0 < self.keep <= 1, self, "keep", "a fraction, more than 0 and at most 1")
        require(self.least is None or not math.isnan(self.least), self, "least", "a number")

    def verdicts(self, scores: Sequence[float | None]) -> list[Verdict]:
        """A verdict on each sample; the first of equal scores is the better one, and no score is the worst of all."""
        stay = set(self._stay(scores))
        worst = "high score" if self.lowest else "low score"
        return [
            Verdict(score=score) if row in stay else removed("no score") if score is None else _cut(worst, score)
            for row, score in enumerate(scores)
        ]

    def _stay(self, scores: Sequence[float | None]) -> list[int]:
        sign = -1.0 if self.lowest else 1.0
        scored = {row: sign * score for row, score in enumerate(scores) if score is not None}
        if self.least is not None:
            return [row for row, score in scored.items() if score >= sign * self.least]
        assert self.keep is not None
        number = math.ceil(self.keep * len(scores) - 1e-9)  # 0.07 x 100 is a little more than 7
        return sorted(scored, key=scored.__getitem__, reverse=True)[:number]


def _cut(reason: str, score: float) -> Verdict:
    return removed(reason, f"{score:.6g}", score)
