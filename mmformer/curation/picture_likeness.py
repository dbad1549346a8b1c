"""Pictures that look the same: close perceptual hashes and close colours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.extras import extra
from mmformer.curation.likeness import Index, IndexedLikeness, Match
from mmformer.spec import require

_PARTS = 4
"""Of a hash of 64 bits; the same part is that of one in 65,536 unlike pictures."""

_WIDTH = 16

_SIDE = 8


class PicturePrint(NamedTuple):
    """What is compared of a picture."""

    hash: int  # 64 bits, of its brightness
    colours: bytes  # 8 x 8 parts of it, 3 channels


@dataclass(frozen=True)
class PictureLikeness(IndexedLikeness):
    """The pictures look the same, whatever their size, format and compression.

    The perceptual hash (Zauner, 2010, as imagehash has it) is the sign of 64 coefficients of the cosine transform of
    the picture's brightness. It takes a red disc and a blue one for the same, so colours are compared besides.

    Attributes:
        place: of the picture.
        distance: bits of 64 in which the hashes may differ.
        colour: how far, on average over the channels and of 255, the colours may lie apart in any of 8 x 8 parts of the
            picture: badges on flags, lamps of traffic lights. 255 compares the hashes alone.
    """

    reason: ClassVar[str] = "like picture"

    place: Place = field(default=Place("image"))
    distance: int = 6
    colour: float = 16.0

    def __post_init__(self) -> None:
        require(
            0 <= self.distance <= 16, self, "distance", "0 to 16: hashes of unlike pictures differ in about 32 bits"
        )
        require(0 <= self.colour <= 255, self, "colour", "0 to 255")

    def prints(self, samples: Candidates) -> list[PicturePrint | None]:
        return samples.each(_perhaps, self.place)

    def index(self) -> Index:
        return _NearIndex(self.distance, self.colour)


def _perhaps(picture: NDArray[np.uint8] | None) -> PicturePrint | None:
    return None if picture is None else picture_print(picture)


def picture_print(picture: NDArray[np.uint8]) -> PicturePrint:
    """The print of a picture, uint8 H W 3."""
    imagehash = extra("imagehash", "Comparing pictures")
    image = Image.fromarray(picture)
    bits: NDArray[Any] = np.packbits(imagehash.phash(image).hash.reshape(-1))
    colours = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return PicturePrint(int.from_bytes(bits.tobytes(), "big"), colours.tobytes())


class _NearIndex(Index):
    """Multi-index hashing (Norouzi, Punjani, Fleet, 2012): exact, without comparing all with all.

    Of two hashes that differ in at most d bits, one of the four parts differs in at most d // 4: it is looked up with
    every change of so few bits. Up to 3 bits that takes 4 look-ups a picture, up to 7 bits 68, up to 11 bits 548.
    """

    def __init__(self, distance: int, colour: float) -> None:
        self._distance, self._colour = distance, colour
        self._tables: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_PARTS)]  # part -> numbers
        self._numbers: dict[PicturePrint, int] = {}
        self._rows: list[tuple[int, PicturePrint]] = []  # number -> row and print
        self._changes = [
            sum(1 << bit for bit in bits)
            for number in range(distance // _PARTS + 1)
            for bits in combinations(range(_WIDTH), number)
        ]

    def add(self, row: int, made: PicturePrint) -> None:
        if made not in self._numbers:
            number = self._numbers[made] = len(self._rows)
            self._rows.append((row, made))
            for table, part in zip(self._tables, _split(made.hash), strict=True):
                table[part].append(number)

    def find(self, made: PicturePrint) -> Match | None:
        if made in self._numbers:
            return Match(self._rows[self._numbers[made]][0], _apart(0))
        near = {
            number
            for table, part in zip(self._tables, _split(made.hash), strict=True)
            for change in self._changes
            for number in table.get(part ^ change, ())
        }
        distances = ((self._bits(number, made), number) for number in near)
        best = min(((bits, number) for bits, number in distances if bits is not None), default=None)
        return None if best is None else Match(self._rows[best[1]][0], _apart(best[0]))

    def _bits(self, number: int, made: PicturePrint) -> int | None:
        """In how many bits the hashes differ; None where the pictures are not alike."""
        other = self._rows[number][1]
        bits = (made.hash ^ other.hash).bit_count()
        return bits if bits <= self._distance and colours_apart(made, other) <= self._colour else None


def colours_apart(one: PicturePrint, other: PicturePrint) -> float:
    """How far the colours of two pictures lie apart where they differ most, 0 to 255."""
    first, second = (np.frombuffer(made.colours, np.uint8).reshape(-1, 3).astype(np.int16) for made in (one, other))
    return float(np.abs(first - second).mean(axis=1).max())


def _split(value: int) -> Sequence[int]:
    return [value >> _WIDTH * part & (1 << _WIDTH) - 1 for part in range(_PARTS)]


def _apart(bits: int) -> str:
    return f"{bits} bits apart"
