"""The charts of a report, drawn with Pillow: a confusion matrix, and precision over recall."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from PIL import Image

from mmformer.drawing import SCALE, Pen
from mmformer.evaluation.details import Classified, Curve

MOST_CLASSES = 40
"""Of a confusion matrix that is drawn: of more, those that are confused most."""

COLOURS = ("#2f6f9f", "#c2622d", "#2f8f5b", "#8a4fa3", "#b8972a", "#b0413e", "#4c8f94", "#75706a")
_PAGE, _INK, _FAINT, _LINE = "#ffffff", "#23211d", "#8a857b", "#e2ded6"
_BLUE = (47, 111, 159)


def draw_confusion(classified: Classified) -> Image.Image:
    """A square for each pair of classes, the darker the larger its share of the row."""
    table = classified.confusion
    shown = most_confused(classified, MOST_CLASSES)
    names = [classified.classes[place] for place in shown]
    cell = max(14, min(44, 640 // len(shown)))
    left, top = 150, 160
    side = cell * len(shown)
    image, pen = _page(left + side + 20, top + side + 20)
    size = 12 if cell >= 16 else 10
    for row, place in enumerate(shown):
        total = max(1, int(table[place].sum()))
        pen.text(
            (left - 8, top + row * cell + (cell - size) / 2 - 1), names[row], size, _INK, left - 14, flush_right=True
        )
        for column, other in enumerate(shown):
            number = int(table[place, other])
            share = number / total
            corner = (left + column * cell, top + row * cell)
            pen.box((*corner, corner[0] + cell - 1, corner[1] + cell - 1), _shade(share), 1)
            if number and cell >= 22:
                middle = (corner[0] + cell / 2, corner[1] + (cell - 11) / 2 - 1)
                pen.text(middle, str(number), 11, _PAGE if share > 0.5 else _INK, cell - 2, centred=True)
    _write_upright(image, names, left, top, cell, size)
    pen.text((left, 14), "what it was taken for", 13, _FAINT)
    pen.text((8, top - 22), "what it is", 13, _FAINT)
    return _finished(image)


def most_confused(classified: Classified, number: int) -> list[int]:
    """So many classes, in their order: all, or those with the most mistakes, made of them or with them."""
    table = classified.confusion
    wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
    order = sorted(range(len(table)), key=lambda place: (-int(wrong[place]), place))
    return sorted(order[:number])


def draw_curves(curves: Sequence[tuple[str, Curve]]) -> Image.Image:
    """Precision over recall, a line for each class, with its average precision."""
    left, top, side, legend = 60, 34, 360, 260
    image, pen = _page(left + side + legend + 30, top + side + 60)
    for step in range(6):
        at = step / 5
        x, y = left + at * side, top + (1 - at) * side
        _line(image, [(left, y), (left + side, y)], _LINE, 1)
        _line(image, [(x, top), (x, top + side)], _LINE, 1)
        pen.text((left - 8, y - 7), f"{at:.1f}", 11, _FAINT, flush_right=True)
        pen.text((x, top + side + 6), f"{at:.1f}", 11, _FAINT, centred=True)
    pen.text((left + side / 2, top + side + 26), "recall", 13, _INK, centred=True)
    pen.text((8, 4), "precision", 13, _INK)
    for number, (name, curve) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = _steps(curve)
        _line(image, [(left + x * side, top + (1 - y) * side) for x, y in points], colour, 2)
        y = top + 6 + number * 24
        pen.box((left + side + 24, y + 4, left + side + 40, y + 10), colour, 2)
        pen.text((left + side + 48, y), f"{name}  {100 * curve.average:.1f} %", 13, _INK, legend - 40)
    return _finished(image)


def _steps(curve: Curve) -> list[tuple[float, float]]:
    """The corners of a curve, which holds each precision back to the recall before."""
    steps = zip(pairwise([0.0, *curve.recall.tolist()]), curve.precision.tolist(), strict=True)
    return [(recall, precision) for ends, precision in steps for recall in ends]


def _page(width: float, height: float) -> tuple[Image.Image, Pen]:
    image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), _PAGE)
    return image, Pen(image)


def _finished(image: Image.Image) -> Image.Image:
    return image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS)


def _shade(share: float) -> str:
    channels = (round(255 + (channel - 255) * share**0.7) if share else 247 for channel in _BLUE)
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _line(image: Image.Image, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    scaled = [(x * SCALE, y * SCALE) for x, y in points]
    if len(scaled) > 1:
        Pen(image).draw.line(scaled, colour, width * SCALE, joint="curve")


def _write_upright(image: Image.Image, names: Sequence[str], left: int, top: int, cell: int, size: int) -> None:
    """Names above columns, turned to be read from below."""
    room = top - 34
    for place, name in enumerate(names):
        strip, pen = _page(room, cell)
        pen.text((4, (cell - size) / 2 - 1), name, size, _INK, room - 8)
        turned = strip.rotate(90, expand=True)
        image.paste(turned, ((left + place * cell) * SCALE, (top - room - 4) * SCALE))
