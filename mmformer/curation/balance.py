"""As many samples of one class as of another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.filter import KEPT, Filter, Verdict, removed
from mmformer.data.seeding import derive, permutation
from mmformer.errors import InputError
from mmformer.spec import require


@dataclass(frozen=True)
class Balance(Filter):
    """Thins out large classes, and repeats the samples of small ones.

    A sample without a label belongs to no class, and does not stay.

    Attributes:
        most: samples of one class at most, chosen at random; None: all.
        least: rows of one class at least, its samples repeated in turn, in random order; None: none is repeated.
        place: of the label.
        seed: of the choice.
    """

    name: ClassVar[str] = "balance"

    most: int | None = None
    least: int | None = None
    place: Place = Place("label")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most is None and self.least is None:
            raise InputError("Balancing needs the most or the least samples of a class, or both.")
        require(self.most is None or self.most >= 1, self, "most", "at least 1")
        require(self.least is None or self.least >= 1, self, "least", "at least 1")
        ordered = self.most is None or self.least is None or self.least <= self.most
        require(ordered, self, "least", f"at most the most ({self.most})")

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        classes: dict[str, list[int]] = defaultdict(list)
        verdicts = [removed("no label")] * len(samples)
        for row, (label,) in enumerate(samples.values(self.place)):
            if label is not None:
                classes[label].append(row)
        for label, rows in classes.items():
            of_class = derive(self.seed, f"balance {label}")  # a class keeps its choice whatever the others are
            order = [rows[place] for place in permutation(len(rows), of_class, "balance")]
            kept = order[: self.most]
            turns, rest = divmod(max(self.least or 0, len(kept)), len(kept))
            for place, row in enumerate(order):
                verdicts[row] = (
                    KEPT._replace(copies=turns + (place < rest))
                    if place < len(kept)
                    else removed("large class", f"{label}: {len(rows)} samples")
                )
        return verdicts
