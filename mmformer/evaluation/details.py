"""What stands behind a metric's scores: single samples, and how classes were taken for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Case(NamedTuple):
    """One sample."""

    number: int  # of the sample in its split, in the order of the shards
    key: str
    goodness: float  # how well the model did, the higher the better; in the metric's own measure
    right: str  # what would have been right
    said: str  # what the model said
    found: int | None = None  # the number of the sample that it found, where that one's picture is to be seen


def worst_first(cases: Sequence[Case]) -> list[Case]:
    """Cases in the order of how well the model did, and of the samples where it did alike."""
    return sorted(cases, key=lambda case: (case.goodness, case.number))


class Curve(NamedTuple):
    """Precision over recall of one class, at each threshold that finds more of it, from the highest."""

    recall: Tensor  # T, float64, 0 to 1
    precision: Tensor  # T
    average: float  # precision, over the steps of recall


class Classified(NamedTuple):
    """How the samples of a label were classified."""

    label: str
    classes: tuple[str, ...]  # their names, or their numbers where those are not known
    confusion: Tensor  # C C, int64: samples of the row's class that were taken for the column's
    curves: Sequence[Curve | None]  # of each class; None: no sample is of it


class Details(NamedTuple):
    """What a metric can say besides scores; any of it may be absent.

    A metric that looks at the samples in several ways says all of it of each way, by the way's name.
    """

    cases: Sequence[Case] = ()
    measure: str = ""  # what the goodness of a case is
    classified: Classified | None = None
    notes: Mapping[str, str] = {}  # what was chosen on the way, such as a probe's regularisation
    ways: Mapping[str, Details] = {}
