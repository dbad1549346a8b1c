"""The picture of a range test: the loss over the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from mmformer.drawing import SCALE, Pen
from mmformer.training.find_lr import Trial

_PAGE, _INK, _FAINT, _RULE, _DOT, _CURVE, _MARK = (
    "#ffffff",
    "#23211d",
    "#8a857b",
    "#e2ded6",
    "#b9c6d0",
    "#2f6f9f",
    "#2f8f5b",
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 460, 70, 56, 24, 56


def draw_trials(trials: Sequence[Trial], suggestion: float | None) -> Image.Image:
    """Each update's loss as a dot, the smoothed ones as a line, and where the suggested rate is.

    The losses that are drawn reach a little above the first: how far it goes wrong after that is of no interest.
    """
    image = Image.new("RGB", (_WIDTH * SCALE, _HEIGHT * SCALE), _PAGE)
    pen = Pen(image)
    low = min(trial.smoothed for trial in trials)
    high = max(low + 1e-9, 1.1 * trials[0].smoothed - 0.1 * low, *(t.smoothed for t in trials[: len(trials) // 2]))
    first, last = math.log10(trials[0].lr), math.log10(trials[-1].lr)

    def at(lr: float, loss: float) -> tuple[float, float]:
        across = (math.log10(lr) - first) / (last - first)
        up = min(1.0, max(0.0, (loss - low) / (high - low)))
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def line(points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        pen.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, width * SCALE)

    for power in range(math.ceil(first), math.floor(last) + 1):
        x, _ = at(10.0**power, low)
        line([(x, _TOP), (x, _HEIGHT - _BOTTOM)], _RULE, 1)
        pen.text((x, _HEIGHT - _BOTTOM + 8), f"1e{power}", 13, _FAINT, centred=True)
    for step in range(5):
        loss = low + (high - low) * step / 4
        _, y = at(trials[0].lr, loss)
        line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _RULE, 1)
        pen.text((_LEFT - 8, y - 8), f"{loss:.3g}", 13, _FAINT, flush_right=True)
    for trial in trials:
        x, y = at(trial.lr, trial.loss)
        pen.box((x - 2, y - 2, x + 2, y + 2), _DOT, 2)
    line([at(trial.lr, trial.smoothed) for trial in trials], _CURVE, 2)
    title = "The loss falls at none of these rates"
    if suggestion is not None:
        x, _ = at(suggestion, low)
        line([(x, _TOP), (x, _HEIGHT - _BOTTOM)], _MARK, 2)
        title = f"The loss falls fastest at a learning rate of {suggestion:.2g}"
    pen.text((_LEFT, 16), title, 18, _INK)
    pen.text((_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 26), "learning rate", 14, _INK, centred=True)
    return image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
