"""Random parts of pictures, which training sees in place of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mmformer.data.resize import Resampling
from mmformer.spec import require

_TRIES = 10
_RESAMPLING = Resampling("bicubic", "torch")  # four times as fast as Pillow's

Target = Callable[[int, int], tuple[int, int]]
"""From the height and width of a picture to those that it is made into."""


@dataclass(frozen=True)
class RandomResizedCropSpec:
    """A part of random area and proportions, resized (Szegedy et al. 2015, §6).

    Attributes:
        area: smallest and largest share of the picture.
        ratio: smallest and largest proportion of width to height, drawn evenly in the logarithm.
    """

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        require(0 < self.area[0] <= self.area[1] <= 1, self, "area", "(smallest, largest), above 0 and up to 1")
        require(0 < self.ratio[0] <= self.ratio[1], self, "ratio", "(smallest, largest), both positive")

    def box(self, height: int, width: int, random: Generator) -> tuple[float, float, float, float]:
        """The part of one picture: left, top, right, bottom, in pixels."""
        low, high = (math.log(bound) for bound in self.ratio)
        for _ in range(_TRIES):
            area, ratio = height * width * random.uniform(*self.area), math.exp(random.uniform(low, high))
            wide, tall = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if wide <= width and tall <= height:
                left, top = random.uniform(0, width - wide), random.uniform(0, height - tall)
                return left, top, left + wide, top + tall
        # A picture so long that no part of such proportions has such an area: the largest of the nearest proportions.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, tall = min(width, height * ratio), min(height, width / ratio)
        left, top = (width - wide) / 2, (height - tall) / 2
        return left, top, left + wide, top + tall

    def reduce(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """A picture to keep: whole times smaller, as long as its smallest part still has the pixels of the size.

        Boxes of pixels are averaged. One that is not twice as large as it has to be stays: to make it smaller takes as
        long as to make its parts.
        """
        times = int(min(image.shape[:2]) * math.sqrt(self.area[0]) / max(size))
        return image if times < 2 else np.array(Image.fromarray(image).reduce(times))

    def __call__(self, image: NDArray[np.uint8], target: Target, random: Generator) -> NDArray[np.uint8]:
        """A random part of whole pixels, made into the target's size for parts of its size: uint8 H W 3."""
        box = self.box(image.shape[0], image.shape[1], random)
        left, top = min(round(box[0]), image.shape[1] - 1), min(round(box[1]), image.shape[0] - 1)
        right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
        part = image[top:bottom, left:right]
        made = _RESAMPLING(part, target(*part.shape[:2]))
        return made.copy() if np.may_share_memory(made, image) else made
