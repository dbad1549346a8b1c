"""Pictures mixed with another's, and their labels with them: Mixup and CutMix.

The other picture is one that stands a little later in the same lane, so that the mixture too is a function of the
position, and no rank needs another one's shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mmformer.spec import require

FARTHEST = 1024
"""Turns of its lane, at most, after which the other picture stands."""


class Mixing(NamedTuple):
    """How one picture is mixed."""

    turns: int  # of the lane, until the other one's
    share: float  # of this picture, by which the labels are weighed
    box: tuple[float, float, float, float] | None  # what is the other's: left, top, right, bottom as parts; None: all


@dataclass(frozen=True)
class MixSpec:
    """Mixup (Zhang et al. 2017, §2) and CutMix (Yun et al. 2019, §3.1); both draw their shares from Beta(α, α).

    Attributes:
        probability: that a picture is mixed at all.
        mixup: α of mixing all pixels; 0: not done.
        cutmix: α of pasting a rectangle; 0: not done. Where both are, each is done half of the time.
    """

    probability: float = 1.0
    mixup: float = 0.2
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, self, "probability", "above 0 and at most 1")
        require(self.mixup >= 0, self, "mixup", "at least 0")
        require(self.cutmix >= 0, self, "cutmix", "at least 0")
        require(self.mixup + self.cutmix > 0, self, "mixup", "positive where cutmix is 0")

    def draw(self, random: Generator) -> Mixing | None:
        """How a picture is mixed; None: not."""
        if random.random() >= self.probability:
            return None
        cut = self.cutmix > 0 and (self.mixup == 0 or random.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share, turns = float(random.beta(alpha, alpha)), 1 + int(random.integers(FARTHEST))
        if not cut:
            return Mixing(turns, share, None)
        side = math.sqrt(1 - share)
        x, y = random.random(2)
        left, top = (max(0.0, centre - side / 2) for centre in (x, y))
        right, bottom = (min(1.0, centre + side / 2) for centre in (x, y))
        return Mixing(turns, share, (left, top, right, bottom))


def mix(own: NDArray[np.uint8], other: NDArray[np.uint8], mixing: Mixing) -> tuple[NDArray[np.uint8], float]:
    """Two pictures of one size, C H W, as one; and the share of the first in it."""
    if mixing.box is None:
        mixed = own * np.float32(mixing.share) + other * np.float32(1 - mixing.share)
        return np.rint(mixed).astype(np.uint8), mixing.share
    height, width = own.shape[1:]
    left, right = (round(mixing.box[place] * width) for place in (0, 2))
    top, bottom = (round(mixing.box[place] * height) for place in (1, 3))
    made = own.copy()
    made[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return made, 1 - (bottom - top) * (right - left) / (height * width)
