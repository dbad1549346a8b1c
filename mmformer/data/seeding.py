"""Random streams that are pure functions of what they are for.

Nothing here has a state to save: a stream is named by a run's seed, a purpose and a position, so that a resumed run
draws again exactly what the interrupted one drew, whatever number of workers or ranks draws it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


class _Words(ISeedSequence):
    """Hands a bit generator its state words as they are.

    NumPy's own ``SeedSequence`` would hash them once more and costs 10 µs; these words are a hash already.
    """

    __slots__ = ("_words",)

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        assert n_words == 4 and dtype is np.uint64, "only PCG64 is seeded this way"
        return self._words


def _digest(seed: int, purpose: str, where: tuple[int, ...], size: int) -> bytes:
    # The numbers hold no colon, so the last colon ends the purpose: different arguments are never the same string.
    name = f"{purpose}:{','.join([str(int(number)) for number in (seed, *where)])}"
    return hashlib.blake2b(name.encode(), digest_size=size).digest()


def generator(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """The stream of ``purpose`` at a place, usually a position in the sample order; about 5 µs.

    The same arguments give the same stream, different ones (also ``("a", 1, 2)`` and ``("a", 12)``) independent ones.
    The raw stream is fixed for good; NumPy may change between its versions how ``normal()`` or ``permutation()`` turn
    it into numbers, so what must never change (the sample order) uses :func:`permutation` below.
    """
    words = np.frombuffer(_digest(seed, purpose, where, 32), dtype="<u8").astype(np.uint64, copy=False)
    return np.random.Generator(np.random.PCG64(_Words(words)))  # type: ignore[arg-type]  # the stubs know only one class


def derive(seed: int, purpose: str, *where: int) -> int:
    """A non-negative 63-bit seed for generators of other libraries, such as ``torch.Generator().manual_seed``."""
    return int.from_bytes(_digest(seed, purpose, where, 8), "little") >> 1


def permutation(count: int, seed: int, purpose: str, *where: int) -> NDArray[np.int64]:
    """A random order of ``range(count)`` that no version of NumPy changes: the ranks of ``count`` raw 64-bit draws."""
    draws = generator(seed, purpose, *where).bit_generator.random_raw(count)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)
