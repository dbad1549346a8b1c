"""What every filter is: it sees the samples of a split, and says of each how often it stays and why."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

from mmformer.curation.candidates import Candidates


class Verdict(NamedTuple):
    """On one sample.

    Attributes:
        copies: how often it stands in the filtered set: 0, it is removed; more than once, it is drawn more often.
        reason: why it is removed, in words that are the same for all that are removed for it.
        detail: what was found in this sample.
        score: what the filter measured, where it measures anything.
    """

    copies: int = 1
    reason: str = ""
    detail: str = ""
    score: float | None = None


KEPT = Verdict()


def removed(reason: str, detail: str = "", score: float | None = None) -> Verdict:
    """A sample that does not stay."""
    return Verdict(0, reason, detail, score)


@dataclass(frozen=True)
class Filter(ABC):
    """A filter; its fields are its arguments.

    Attributes:
        name: what the command and the manifest's history call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        """A verdict on each sample, in their order.

        Raises:
            InputError: the samples hold nothing that this filter could judge by.
        """

    def arguments(self) -> Mapping[str, Any]:
        """The fields, as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__} | own
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
