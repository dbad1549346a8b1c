"""A sheet of samples: pictures, spectra of sounds, and texts, in rows of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmformer.data.sound import Sound
from mmformer.drawing import SCALE, Pen

_PAGE, _CARD, _EDGE, _INK, _FAINT = "#f4f2ee", "#ffffff", "#e2ded6", "#23211d", "#8a857b"
_WIDTH, _GAP, _MARGIN, _INSET, _LINE = 200, 14, 40, 12, 18
_SIDE = _WIDTH - 2 * _INSET
_BAND = 64
_LINES = 3
_BANDS = 40


class Tile(NamedTuple):
    """One sample, or one way to read it."""

    title: str
    picture: NDArray[np.uint8] | None  # H W 3
    spectrum: NDArray[np.uint8] | None  # H W 3
    text: str
    notes: Sequence[str]  # a line each


def draw_contact_sheet(title: str, line: str, rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Tiles in rows under a title; a row has room for what its tiles hold."""
    heights = [_height(row) for row in rows]
    top, columns = _MARGIN + 92, max(map(len, rows))
    width = 2 * _MARGIN + columns * (_WIDTH + _GAP) - _GAP
    total = top + sum(height + _GAP for height in heights) - _GAP + _MARGIN
    image = Image.new("RGB", (width * SCALE, total * SCALE), _PAGE)
    pen = Pen(image)
    pen.text((_MARGIN, _MARGIN), title, 30, _INK, width - 2 * _MARGIN)
    pen.text((_MARGIN, _MARGIN + 48), line, 16, _FAINT, width - 2 * _MARGIN)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _MARGIN + column * (_WIDTH + _GAP)
            pen.box((left, top, left + _WIDTH, top + height), _CARD, 12, _EDGE)
            _draw(pen, tile, left + _INSET, top + _INSET, *_holds(row))
        top += height + _GAP
    return image.resize((width, total), Image.Resampling.LANCZOS)


def _height(row: Sequence[Tile]) -> int:
    picture, spectrum = _holds(row)
    notes = max(len(tile.notes) for tile in row)
    return 2 * _INSET + 20 + (_SIDE + 8) * picture + (_BAND + 8) * spectrum + _LINE * (_LINES + notes)


def _holds(row: Sequence[Tile]) -> tuple[bool, bool]:
    """Whether some tile of a row has a picture, and some a spectrum."""
    return any(tile.picture is not None for tile in row), any(tile.spectrum is not None for tile in row)


def _draw(pen: Pen, tile: Tile, x: int, y: int, picture: bool, spectrum: bool) -> None:
    pen.text((x, y), tile.title, 13, _FAINT, _SIDE)
    y += 20
    if picture:
        if tile.picture is not None:
            pen.picture(tile.picture, (x, y), _SIDE)
        y += _SIDE + 8
    if spectrum:
        if tile.spectrum is not None:
            stretched = np.asarray(Image.fromarray(tile.spectrum).resize((_SIDE * SCALE, _BAND * SCALE)))
            pen.image.paste(Image.fromarray(stretched), (x * SCALE, y * SCALE))
        y += _BAND + 8
    for text in pen.wrapped(tile.text, 14, _SIDE, _LINES):
        pen.text((x, y), text, 14, _INK)
        y += _LINE
    for note in tile.notes:
        pen.text((x, y), note, 12, _FAINT, _SIDE)
        y += _LINE


def draw_spectrum(sound: Sound, hidden: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Loudness over time and mel-spaced frequency, dark where it is loud: H W 3.

    Args:
        sound: S samples.
        hidden: rectangles of SpecAugment, N 4, which are drawn in red.
    """
    window = max(64, sound.rate // 32)
    samples = np.pad(sound.samples, (0, max(0, window - len(sound.samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[:: max(1, len(samples) // 256)]  # frames window
    power = np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2  # frames frequencies
    mel = np.linspace(0, 2595 * np.log10(1 + sound.rate / 1400), _BANDS + 1)  # of O'Shaughnessy (1987)
    edges = (700 * (10 ** (mel / 2595) - 1) / sound.rate * window).astype(int).clip(0, window // 2)
    bands = [power[:, low : max(low + 1, high)].mean(1) for low, high in pairwise(edges.tolist())]
    decibels = 10 * np.log10(np.stack(bands) + 1e-10)  # bands frames
    shade = ((decibels - decibels.max()) / 60 + 1).clip(0, 1)  # 60 decibels, from white to black
    picture = np.repeat((255 * (1 - shade[::-1])).astype(np.uint8)[:, :, None], 3, axis=2)  # bands frames 3
    height, width = picture.shape[:2]
    for begin, end, low, high in [] if hidden is None else hidden.tolist():
        rows = slice(round((1 - high) * height), round((1 - low) * height))
        picture[rows, round(begin * width) : round(end * width)] = (214, 90, 80)
    return picture
