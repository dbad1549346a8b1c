"""The best part of a set by any score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.filter import Filter, Verdict
from mmformer.curation.scores import Cut
from mmformer.data.scores import read_scores
from mmformer.errors import InputError


@dataclass(frozen=True)
class Best(Filter):
    """Keeps the samples of the best scores.

    A curriculum (Bengio et al., 2009) is several such sets, from the easiest fraction to all, trained on one after the
    other.

    Attributes:
        cut: which scores are good enough.
        scores: a table of scores, or a folder with one, as filters that measure write it; None: ``place`` has them.
        place: of a number in every sample; None: ``scores`` has them.
    """

    name: ClassVar[str] = "best"

    cut: Cut
    scores: str | None = None
    place: Place | None = None

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.place is None):
            raise InputError("Say where the scores are: in a table, or in a field of the samples.")

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        if self.place is not None:
            return self.cut.verdicts([score for (score,) in samples.values(self.place)])
        return self.cut.verdicts(read_scores(Path(str(self.scores)), samples.split, samples.keys))
