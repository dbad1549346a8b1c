"""Random orders of ``range(count)`` that are looked up place by place, and take no more memory for larger counts.

Both are ciphers of J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002): to encipher the
numbers below ``count`` is to put them in an order that the key decides.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmformer.data.seeding import generator, permutation

TABLE = 4096
"""The largest count whose order is a table."""

_ROUNDS = 6
_CHUNK = 2**16
_WORD = 2**64 - 1


def shuffle(count: int, seed: int, purpose: str, *where: int) -> Shuffle:
    """A random order of ``range(count)``: ``[place]`` is what stands there, ``numpy.asarray`` all of it.

    Up to ``TABLE`` numbers it is their method 1, a table of ranks, in which all orders are equally likely; a network's
    digits would be too few there to mix well. Larger counts are a :class:`Feistel` network, which is its keys.
    """
    if count <= TABLE:
        return permutation(count, seed, purpose, *where).astype(np.uint16).data
    return Feistel(count, seed, purpose, *where)


class Feistel:
    """A random order of ``range(count)``, of which nothing is stored but six keys.

    A number is two digits, of the bases a and b, with ab just above ``count``. Each round adds to one of them what a
    keyed hash makes of the other, modulo its base (method 3, the generalised Feistel network). Whoever knows the other
    digit can take it away again: a round is a bijection of the ab numbers, and so are all rounds together. Where one of
    ``range(count)`` goes to a number past its end, it is sent on until it comes back (method 2, cycle walking). It
    does, since a bijection moves in cycles and it began within; and no two end at one place, since each walk can be
    followed back. So each number of ``range(count)`` stands at exactly one place.
    """

    __slots__ = ("_high", "_keys", "_low", "count")

    def __init__(self, count: int, seed: int, purpose: str, *where: int) -> None:
        self.count = count
        self._low = math.isqrt(count - 1) + 1
        self._high = -(-count // self._low)
        self._keys: list[int] = generator(seed, purpose, *where).bit_generator.random_raw(_ROUNDS).tolist()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        while True:
            place = self._mixed(place)
            if place < self.count:
                return place

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.empty(self.count, np.int64)
        for start in range(0, self.count, _CHUNK):  # what it takes besides the result is that of a chunk
            part = np.arange(start, min(start + _CHUNK, self.count), dtype=np.uint64)
            out = np.arange(len(part))
            while len(out):
                part[out] = self._mixed(part[out])
                out = np.flatnonzero(part >= self.count)
            whole[start : start + len(part)] = part
        return whole if dtype is None else whole.astype(dtype)

    def _mixed(self, place: Any) -> Any:
        """All rounds, of an ``int`` or of an array of ``uint64``: no sum passes 64 bits."""
        high = place // self._low
        low = place - high * self._low
        for number in range(0, _ROUNDS, 2):
            low = (low + _hash(high ^ self._keys[number])) % self._low
            high = (high + _hash(low ^ self._keys[number + 1])) % self._high
        return high * self._low + low


Shuffle: TypeAlias = "memoryview[int] | Feistel"


def _hash(word: Any) -> Any:
    """56 bits that all bits of a word decide: SplitMix64's last step (Steele, Lea and Flood 2014, figure 16)."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return (word ^ (word >> 31)) >> 8
