"""What the data layer reads samples from, whatever holds them: parts of known sizes, and a sample at any place."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RawSample:
    """A sample as it is stored: its key, and extension -> the member's bytes."""

    key: str
    members: dict[str, bytes]


class Samples(ABC):
    """The samples of one split, in parts (shards, folders) whose sizes are known beforehand."""

    counts: Sequence[int]
    """Samples in each part."""

    elsewhere: bool = False
    """Whether what is read is copied from elsewhere."""

    @abstractmethod
    def part_keys(self, part: int) -> Sequence[str]:
        """The keys in one part, in order."""

    @abstractmethod
    def read(self, part: int, row: int, extensions: Collection[str] | None = None) -> RawSample:
        """Read a sample.

        Args:
            part: the number of the part that it is in.
            row: its number there.
            extensions: the members to read, in this order; None reads all. One that this sample lacks is left out, but
                one that the whole part lacks is an error.

        Raises:
            InputError: the part is missing or damaged, or lacks what was asked for.
        """

    def __len__(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        return int(np.sum(np.asarray(self.counts, np.int64)))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(np.asarray(self.counts, np.int64))

    @property
    def names(self) -> Iterable[str]:
        """What the parts, or the samples, are called; nothing where there are very many."""
        return ()

    @property
    def digest(self) -> str:
        """Of the counts and the names: another one, and positions mean other samples.

        What is in the samples may change: damaged ones may be mended.
        """
        digest = hashlib.sha256(np.asarray(self.counts, "<i8").tobytes())
        for name in self.names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all samples, in order."""
        return tuple(key for part in range(len(self.counts)) for key in self.part_keys(part))

    def locate(self, position: int) -> tuple[int, int]:
        """Part and row of a sample that is counted through the whole split.

        Raises:
            IndexError: the position is negative or past the end.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a split of {len(self)} samples")
        part = int(np.searchsorted(self._ends, position, side="right"))
        return part, position - int(self._ends[part]) + self.counts[part]

    def __getitem__(self, position: int) -> RawSample:
        """The sample at a position that counts through the whole split, with all of its members."""
        return self.read(*self.locate(position))


class JoinedSamples(Samples):
    """Several, one after the other."""

    def __init__(self, several: Sequence[Samples]) -> None:
        self.several = tuple(several)
        self.elsewhere = any(samples.elsewhere for samples in several)
        self.counts = tuple(count for samples in several for count in samples.counts)
        self._where = [(samples, part) for samples in several for part in range(len(samples.counts))]

    @property
    def names(self) -> Iterable[str]:
        return (name for samples in self.several for name in samples.names)

    def part_keys(self, part: int) -> Sequence[str]:
        samples, own = self._where[part]
        return samples.part_keys(own)

    def read(self, part: int, row: int, extensions: Collection[str] | None = None) -> RawSample:
        samples, own = self._where[part]
        return samples.read(own, row, extensions)
