"""Whether the two sides of a sample, a picture and its caption say, belong together, as a model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.embedding import Embedder
from mmformer.curation.filter import Filter, Verdict
from mmformer.curation.scores import Cut
from mmformer.errors import InputError


@dataclass(frozen=True)
class Agreement(Filter):
    """Keeps samples whose two sides the model embeds alike; the score is the cosine (LAION, Schuhmann et al., 2021).

    A sample that lacks a side has no score, and does not stay.

    Attributes:
        embedder: the model.
        cut: which scores are good enough.
        first: one side.
        second: the other side, of another modality.
    """

    name: ClassVar[str] = "agreement"

    embedder: Embedder
    cut: Cut
    first: Place = Place("image")
    second: Place = Place("text")

    def __post_init__(self) -> None:
        if self.first.kind == self.second.kind:
            raise InputError(f"Agreement is between two modalities, but both sides are of {self.first.kind}.")

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        pairs = self.embedder.embed(samples, self.first, self.second)
        return self.cut.verdicts([None if one is None or other is None else float(one @ other) for one, other in pairs])
