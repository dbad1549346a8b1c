"""A sheet of pictures with what a model says of each, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmformer.drawing import SCALE, Pen

COLUMNS = 6

_PAGE, _CARD, _EDGE = "#f4f2ee", "#ffffff", "#e2ded6"
_INK, _FAINT, _BAR, _RIGHT, _TRACK = "#23211d", "#8a857b", "#b9b2a4", "#2f8f5b", "#efece6"
_WIDTH, _GAP, _MARGIN, _PICTURE, _INSET, _LINE = 220, 16, 40, 128, 14, 34


class Card(NamedTuple):
    """One picture and what was said of it."""

    picture: np.ndarray  # uint8 H W 3
    name: str | None  # what it is
    caption: str | None
    labels: Sequence[tuple[str, float]]  # with their probabilities, the most probable first


def draw_sheet(title: str, lines: Sequence[str], cards: Sequence[Card], footer: str) -> Image.Image:
    """Cards in rows under a title.

    Args:
        title: in large letters.
        lines: under it, what the reader sees.
        cards: in this order; those whose name is among their labels have it in green.
        footer: under the cards.
    """
    labels = max((len(card.labels) for card in cards), default=0)
    captions = any(card.caption is not None for card in cards)
    height = 2 * _INSET + _PICTURE + 26 + (30 if captions else 0) + labels * _LINE
    rows = -(-len(cards) // COLUMNS)
    top = _MARGIN + 46 + 24 * len(lines) + 20
    width = 2 * _MARGIN + COLUMNS * _WIDTH + (COLUMNS - 1) * _GAP
    total = top + rows * (height + _GAP) + 24 + _MARGIN
    image = Image.new("RGB", (width * SCALE, total * SCALE), _PAGE)
    pen = Pen(image)
    pen.text((_MARGIN, _MARGIN), title, 30, _INK)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + 48 + 24 * number), line, 16, _FAINT)
    for place, card in enumerate(cards):
        row, column = divmod(place, COLUMNS)
        _draw_card(pen, card, (_MARGIN + column * (_WIDTH + _GAP), top + row * (height + _GAP)), height, captions)
    pen.text((_MARGIN, total - _MARGIN - 16), footer, 16, _FAINT)
    return image.resize((width, total), Image.Resampling.LANCZOS)


def _draw_card(pen: Pen, card: Card, corner: tuple[int, int], height: int, captions: bool) -> None:
    left, top = corner
    inner = _WIDTH - 2 * _INSET
    pen.box((left, top, left + _WIDTH, top + height), _CARD, 12, _EDGE)
    pen.picture(card.picture, (left + (_WIDTH - _PICTURE) // 2, top + _INSET), _PICTURE)
    y = top + _INSET + _PICTURE + 8
    pen.text((left + _WIDTH / 2, y), card.name or "", 13, _FAINT, inner, centred=True)
    y += 20
    if captions:
        pen.text((left + _WIDTH / 2, y), f"“{card.caption}”" if card.caption else "", 17, _INK, inner, centred=True)
        y += 30
    for label, probability in card.labels:
        right = label == card.name
        pen.text((left + _INSET, y), label, 13, _RIGHT if right else _INK, inner - 44)
        pen.text((left + _WIDTH - _INSET, y), f"{100 * probability:.0f} %", 13, _FAINT, flush_right=True)
        pen.box((left + _INSET, y + 19, left + _WIDTH - _INSET, y + 24), _TRACK, 2)
        if probability * inner >= 2:
            pen.box((left + _INSET, y + 19, left + _INSET + probability * inner, y + 24), _RIGHT if right else _BAR, 2)
        y += _LINE
