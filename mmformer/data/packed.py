"""Many short texts, or short rows of whole numbers, each in one piece of memory.

Python keeps some fifty bytes beside what every one of them says, and a worker holds tens of thousands.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any, TypeVar, overload

T = TypeVar("T")


class _Packed(Sequence[T]):
    """Pieces that lie one behind the other, of which only the ends are known."""

    def __init__(self, lengths: Iterable[int]) -> None:
        self._ends = array("Q", accumulate(lengths, initial=0))

    @abstractmethod
    def _piece(self, first: int, end: int) -> T:
        """What lies between two places."""

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        place = range(len(self))[index]
        return self._piece(self._ends[place], self._ends[place + 1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # equal to tuples, whose hash they have not

    def __repr__(self) -> str:
        return repr(tuple(self))


class PackedTexts(_Packed[str]):
    """Texts, in UTF-8."""

    def __init__(self, texts: Iterable[str]) -> None:
        pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
        super().__init__(map(len, pieces))
        self._bytes = b"".join(pieces)

    def _piece(self, first: int, end: int) -> str:
        return self._bytes[first:end].decode("utf-8", "surrogatepass")


class PackedRows(_Packed[tuple[int, ...]]):
    """Rows of whole numbers, of 64 bits.

    Raises:
        OverflowError: a number has more.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        super().__init__(map(len, rows))
        self._numbers: array[Any] = array("q", chain.from_iterable(rows))

    def _piece(self, first: int, end: int) -> tuple[int, ...]:
        return tuple(self._numbers[first:end])
