"""A picture of what is in a set: a histogram for each thing that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmformer.data.statistics import Facts
from mmformer.drawing import SCALE, Pen

COLUMNS = 3
_PAGE, _CARD, _EDGE, _INK, _FAINT, _BAR = "#f4f2ee", "#ffffff", "#e2ded6", "#23211d", "#8a857b", "#4f8a6d"
_WIDTH, _HEIGHT, _GAP, _MARGIN, _INSET = 400, 230, 16, 40, 18
_PLOT, _BINS, _BARS = 120, 40, 8


class Panel(NamedTuple):
    """One histogram.

    ``counts`` are its bars from left to right; ``marks`` are (place from 0 to 1, text) under them. Where there are
    ``names`` it is drawn as horizontal bars with a name each.
    """

    title: str
    note: str
    counts: Sequence[int]
    marks: Sequence[tuple[float, str]] = ()
    names: Sequence[str] = ()


def draw_histograms(title: str, line: str, splits: Mapping[str, Facts]) -> Image.Image:
    """All splits together.

    Args:
        title: in large letters.
        line: under it.
        splits: what was measured of each.
    """
    total = Facts()
    for facts in splits.values():
        total += facts
    drawn = panels(total, {split: facts.samples for split, facts in splits.items()})
    rows = -(-len(drawn) // COLUMNS)
    top = _MARGIN + 92
    width = 2 * _MARGIN + COLUMNS * _WIDTH + (COLUMNS - 1) * _GAP
    height = top + rows * (_HEIGHT + _GAP) + _MARGIN - _GAP
    image = Image.new("RGB", (width * SCALE, height * SCALE), _PAGE)
    pen = Pen(image)
    pen.text((_MARGIN, _MARGIN), title, 30, _INK, width - 2 * _MARGIN)
    pen.text((_MARGIN, _MARGIN + 48), line, 16, _FAINT, width - 2 * _MARGIN)
    for place, panel in enumerate(drawn):
        row, column = divmod(place, COLUMNS)
        _draw(pen, panel, _MARGIN + column * (_WIDTH + _GAP), top + row * (_HEIGHT + _GAP))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def panels(facts: Facts, samples: Mapping[str, int]) -> list[Panel]:
    """The histograms of what there is."""
    measured: list[tuple[str, Sequence[float], str]] = [
        ("image width", facts.width, "pixels"),
        ("image height", facts.height, "pixels"),
        ("width by height", facts.aspect, ""),
        ("sound length", facts.seconds, "seconds"),
        ("texts of a sample", facts.captions if facts.characters else [], ""),
        ("text length", facts.characters, "characters"),
        ("text length", facts.words, "words"),
        ("text length", facts.tokens, "tokens"),
    ]
    named: list[tuple[str, Mapping[str, int]]] = [
        ("samples by split", samples),
        ("languages", facts.languages),
        ("classes", facts.classes),
    ]
    return [histogram(title, values, unit) for title, values, unit in measured if values] + [
        bars(title, counts) for title, counts in named if counts
    ]


def histogram(title: str, values: Sequence[float], unit: str) -> Panel:
    """The distribution of a number; along a logarithmic axis where most of it spans more than a factor of 20."""
    array = np.asarray(values, np.float64)
    low, high = float(array.min()), float(array.max())
    if low == high:
        beside = [0] * (_BINS // 2)
        note = f"each {low:.4g} {unit}".rstrip()
        return Panel(title, note, [*beside, len(array), *beside], [(0.5, f"{low:.4g}")])
    note = f"median {np.median(array):.4g}, mean {array.mean():.4g} {unit}".rstrip()
    whole = bool((array == array.round()).all())
    steep = low > 0 and np.percentile(array, 99) > 20 * np.percentile(array, 1)
    if whole and (not steep or high < 200):
        # A bar is as many whole numbers as any other: bars would otherwise be higher by turns.
        step = math.ceil((high - low + 1) / _BINS)
        edges = low - 0.5 + step * np.arange(math.floor((high - low) / step) + 2)
        ends = [low, (low + edges[-1] - 0.5) / 2, float(edges[-1]) - 0.5]
    elif steep:
        edges = np.geomspace(low, high, _BINS + 1)
        ends = [low, math.sqrt(low * high), high]
    else:
        edges = np.linspace(low, high, _BINS + 1)
        ends = [low, (low + high) / 2, high]
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # which rounding may have moved
    counts = np.histogram(array, edges)[0].tolist()
    return Panel(title, note, counts, [(place, f"{end:.4g}") for place, end in zip((0.0, 0.5, 1.0), ends, strict=True)])


def bars(title: str, counts: Mapping[str, int]) -> Panel:
    """How often each of some names occurs: the commonest, and how many others there are."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown, rest = ranked[:_BARS], ranked[_BARS:]
    note = f"and {len(rest):,} others with at most {rest[0][1]:,}" if rest else ""
    return Panel(title, note, [count for _, count in shown], names=[name for name, _ in shown])


def _draw(pen: Pen, panel: Panel, left: int, top: int) -> None:
    pen.box((left, top, left + _WIDTH, top + _HEIGHT), _CARD, 12, _EDGE)
    inner = _WIDTH - 2 * _INSET
    x = left + _INSET
    pen.text((x, top + 12), panel.title, 17, _INK)
    pen.text((left + _WIDTH - _INSET, top + 15), panel.note, 13, _FAINT, inner - 150, flush_right=True)
    most = max(panel.counts)
    if panel.names:
        for row, (name, count) in enumerate(zip(panel.names, panel.counts, strict=True)):
            y = top + 46 + row * 22
            pen.text((x, y), name, 13, _INK, 110)
            pen.box((x + 118, y + 3, x + 118 + max(2.0, (inner - 180) * count / most), y + 15), _BAR, 2)
            pen.text((left + _WIDTH - _INSET, y), f"{count:,}", 13, _FAINT, flush_right=True)
        return
    base, step = top + 60 + _PLOT, inner / len(panel.counts)
    for place, count in enumerate(panel.counts):
        if count:
            gap = 0.1 * step if step > 4 else 0.0
            edges = (x + place * step + gap, base - max(1.0, _PLOT * count / most), x + (place + 1) * step - gap, base)
            pen.box(edges, _BAR, 0)
    pen.box((x, base, x + inner, base + 1), _FAINT, 0)
    for along, text in panel.marks:
        pen.text((x + along * inner, base + 8), text, 13, _FAINT, centred=0 < along < 1, flush_right=along == 1)
