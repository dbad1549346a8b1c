"""The drawings in a colour bitmap font (CBDT), read as they lie in the file.

Only what the Noto colour emoji font uses is read: ``cmap`` format 12, ligatures (``GSUB`` lookups of type 4), and one
strike in ``CBLC`` index format 1 and ``CBDT`` image format 17, which are PNG files.
"""

from __future__ import annotations

import struct
from pathlib import Path

from mmformer.errors import InputError

VARIATION_SELECTOR = 0xFE0F  # "drawn as emoji": the font's ligatures leave it out


class NotoFont:
    """The glyph bitmaps of one font file.

    Raises:
        InputError: the file is no font, or one that is laid out in another way.
    """

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._path = path
        try:
            count = self._u16(4)
            self._tables = {self._data[at : at + 4]: self._u32(at + 8) for at in range(12, 12 + 16 * count, 16)}
            self._glyphs = self._read_cmap()
            self._ligatures = self._read_ligatures()
            self._bitmaps = self._read_strike()
        except (struct.error, KeyError) as error:
            raise self._unlike(f"{type(error).__name__}: {error}") from error

    def png(self, text: str) -> bytes:
        """The drawing of one emoji, which may be several code points, as the PNG file in the font.

        Raises:
            InputError: the font has no single drawing for it.
        """
        glyphs = tuple(self._glyphs.get(ord(point), 0) for point in text if ord(point) != VARIATION_SELECTOR)
        glyph = glyphs[0] if len(glyphs) == 1 else self._ligatures.get(glyphs)
        if glyph not in self._bitmaps:
            points = " ".join(f"{ord(point):04X}" for point in text)
            raise InputError(f"{self._path} has no drawing of {text} ({points}).")
        start, length = self._bitmaps[glyph]
        return self._data[start : start + length]

    def _u16(self, at: int) -> int:
        return int(struct.unpack_from(">H", self._data, at)[0])

    def _u32(self, at: int) -> int:
        return int(struct.unpack_from(">I", self._data, at)[0])

    def _u16s(self, at: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f">{count}H", self._data, at)

    def _unlike(self, what: str) -> InputError:
        return InputError(f"{self._path} is not laid out like the font that this script reads: {what}.")

    def _read_cmap(self) -> dict[int, int]:
        """Code point -> glyph."""
        table = self._tables[b"cmap"]
        for record in range(table + 4, table + 4 + 8 * self._u16(table + 2), 8):
            at = table + self._u32(record + 4)
            if self._u16(at) == 12:
                groups = (struct.unpack_from(">3I", self._data, at + 16 + 12 * i) for i in range(self._u32(at + 12)))
                return {
                    point: glyph + point - first for first, last, glyph in groups for point in range(first, last + 1)
                }
        raise self._unlike("no cmap of format 12")

    def _read_ligatures(self) -> dict[tuple[int, ...], int]:
        """Glyphs -> the one glyph that they are drawn as."""
        table = self._tables[b"GSUB"]
        lookups = table + self._u16(table + 8)
        found: dict[tuple[int, ...], int] = {}
        for offset in self._u16s(lookups + 2, self._u16(lookups)):
            lookup = lookups + offset
            if self._u16(lookup) != 4:
                continue
            for subtable in self._u16s(lookup + 6, self._u16(lookup + 4)):
                self._read_ligature_table(lookup + subtable, found)
        return found

    def _read_ligature_table(self, at: int, found: dict[tuple[int, ...], int]) -> None:
        sets = self._u16s(at + 6, self._u16(at + 4))
        for first, set_offset in zip(self._read_coverage(at + self._u16(at + 2)), sets, strict=True):
            start = at + set_offset
            for offset in self._u16s(start + 2, self._u16(start)):
                glyph, count = self._u16s(start + offset, 2)
                found.setdefault((first, *self._u16s(start + offset + 4, count - 1)), glyph)

    def _read_coverage(self, at: int) -> list[int]:
        kind, count = self._u16s(at, 2)
        if kind == 1:
            return list(self._u16s(at + 4, count))
        ranges = (self._u16s(at + 4 + 6 * i, 2) for i in range(count))
        return [glyph for first, last in ranges for glyph in range(first, last + 1)]

    def _read_strike(self) -> dict[int, tuple[int, int]]:
        """Glyph -> offset and length of its PNG file."""
        table, images = self._tables[b"CBLC"], self._tables[b"CBDT"]
        if self._u32(table + 4) != 1:
            raise self._unlike(f"{self._u32(table + 4)} strikes")
        array, count = table + self._u32(table + 8), self._u32(table + 16)
        found: dict[int, tuple[int, int]] = {}
        for record in range(array, array + 8 * count, 8):
            first, last = self._u16s(record, 2)
            at = array + self._u32(record + 4)
            if self._u16s(at, 2) != (1, 17):
                raise self._unlike(f"bitmaps of format {self._u16s(at, 2)}")
            start = images + self._u32(at + 4)
            for number, glyph in enumerate(range(first, last + 1)):
                here, after = struct.unpack_from(">2I", self._data, at + 8 + 4 * number)
                if after > here:  # five bytes of metrics and a length stand before the file
                    found[glyph] = (start + here + 9, self._u32(start + here + 5))
        return found
