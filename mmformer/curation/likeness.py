"""When two samples are as good as one, and how those are found without comparing all with all.

A likeness makes a print of every sample; an index over prints answers which of those in it is like another one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from mmformer.curation.candidates import Candidates
from mmformer.data.shards import RawSample


class Match(NamedTuple):
    """What a sample is like."""

    row: int
    how: str  # such as "2 bits apart"


class Index(ABC):
    """Prints of samples, by row, in which those that are like another are found."""

    @abstractmethod
    def add(self, row: int, made: Any) -> None:
        """Have the print of a sample in it."""

    @abstractmethod
    def find(self, made: Any) -> Match | None:
        """The one that is most like a print, the first of several; None: none is like it."""


@dataclass(frozen=True)
class Likeness(ABC):
    """A way in which samples are alike.

    Attributes:
        reason: what is said of a sample that is removed for it.
    """

    reason: ClassVar[str]

    @abstractmethod
    def prints(self, samples: Candidates) -> Sequence[Any]:
        """A print of every sample; None where it lacks what is compared: it is like no other."""

    @abstractmethod
    def within(self, prints: Sequence[Any], order: Sequence[int]) -> dict[int, Match]:
        """Those that are like one that comes earlier in an order, and is not like an earlier one itself.

        So those that are left are not like each other, and each of those that are found is like one that is left:
        chains, in which each is like its neighbours and the ends are nothing like each other, keep several.
        """

    @abstractmethod
    def between(self, prints: Sequence[Any], others: Sequence[Any]) -> dict[int, Match]:
        """Those that are like one of the others; their matches are rows of the others."""


@dataclass(frozen=True)
class IndexedLikeness(Likeness):
    """A likeness whose prints are looked up one by one."""

    @abstractmethod
    def index(self) -> Index:
        """An index with nothing in it."""

    def within(self, prints: Sequence[Any], order: Sequence[int]) -> dict[int, Match]:
        index, found = self.index(), {}
        for row in order:
            if prints[row] is not None:
                match = index.find(prints[row])
                if match is None:
                    index.add(row, prints[row])
                else:
                    found[row] = match
        return found

    def between(self, prints: Sequence[Any], others: Sequence[Any]) -> dict[int, Match]:
        index = self.index()
        for row, made in enumerate(others):
            if made is not None:
                index.add(row, made)
        matches = {row: index.find(made) for row, made in enumerate(prints) if made is not None}
        return {row: match for row, match in matches.items() if match is not None}


@dataclass(frozen=True)
class ExactLikeness(IndexedLikeness):
    """The members are the same, byte for byte; the keys may differ.

    Attributes:
        members: extensions of those that are compared; empty: all. A sample with none of them is like no other.
    """

    reason: ClassVar[str] = "same bytes"

    members: tuple[str, ...] = ()

    def prints(self, samples: Candidates) -> list[bytes | None]:
        """SHA-256 of the members' names, lengths and bytes."""
        return [_digest(raw) for raw in samples.raw(self.members)]

    def index(self) -> Index:
        return _SameIndex()


def _digest(raw: RawSample) -> bytes | None:
    digest = hashlib.sha256()
    for extension, data in sorted(raw.members.items()):
        digest.update(f"{extension}:{len(data)}:".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.digest() if raw.members else None


class _SameIndex(Index):
    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}

    def add(self, row: int, made: bytes) -> None:
        self._rows.setdefault(made, row)

    def find(self, made: bytes) -> Match | None:
        return Match(self._rows[made], "the same bytes") if made in self._rows else None
