"""Augmentations: a whole batch of uint8 images at once, each image from the stream that its position names.

Applied to the batch rather than to each image: at the sizes that models train on, the calls would otherwise cost more
than the pixels. An image's result depends on its own stream alone, not on its batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.data.seeding import generator
from mmformer.spec import family, require


@family
@dataclass(frozen=True)
class AugmentationSpec(ABC):
    """A random change of images.

    ``draws`` is how many uniform numbers in [0, 1) one image takes.
    """

    draws: ClassVar[int]

    @abstractmethod
    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Change a batch.

        Args:
            images: uint8 B 3 H W.
            uniform: B draws, float32 in [0, 1).

        Returns:
            uint8 of the same shape.
        """


def augment(images: Tensor, specs: Sequence[AugmentationSpec], seed: int, positions: Sequence[int]) -> Tensor:
    """Apply augmentations in turn, uint8 B 3 H W, each image seeded by (seed, augmentation, its position)."""
    for index, spec in enumerate(specs):
        purpose = f"augment.{index}.{type(spec).__name__}"
        # Drawn in float32: rounded to it, the largest of float64 would be 1.
        uniform = [generator(seed, purpose, position).random(spec.draws, dtype=np.float32) for position in positions]
        images = spec.apply(images, torch.from_numpy(np.stack(uniform)))
    return images


@dataclass(frozen=True)
class HorizontalFlipSpec(AugmentationSpec):
    """Left and right exchanged.

    Attributes:
        probability: of doing so.
    """

    draws: ClassVar[int] = 1
    probability: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, self, "probability", "from 0 to 1")

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        chosen = uniform[:, 0] < self.probability
        return torch.where(chosen[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class RandomAffineSpec(AugmentationSpec):
    """Shifted, turned and scaled by one bilinear resampling; what comes in from outside continues the border.

    Attributes:
        shift: of the image, at most, as a share of its side, in each direction.
        degrees: of rotation, at most, in each direction.
        scale: smallest and largest magnification, drawn evenly in the logarithm.
        stretch: largest ratio by which one side is magnified more than the other; 1: none.
    """

    draws: ClassVar[int] = 5
    shift: float = 0.1
    degrees: float = 10.0
    scale: tuple[float, float] = (0.8, 1.2)
    stretch: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.shift <= 1, self, "shift", "from 0 to 1")
        require(0 <= self.degrees <= 180, self, "degrees", "from 0 to 180")
        require(0 < self.scale[0] <= self.scale[1], self, "scale", "(smallest, largest), both positive")
        require(self.stretch >= 1, self, "stretch", "at least 1")

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        signed = uniform * 2 - 1
        angle = signed[:, 0] * math.radians(self.degrees)
        low, high = (math.log(bound) for bound in self.scale)
        magnify = (low + uniform[:, 1] * (high - low)).exp()
        stretch = (signed[:, 2] * math.log(self.stretch) / 2).exp()
        cos, sin = angle.cos() / magnify, angle.sin() / magnify
        # The inverse map, from a place in the result to a place in the source, in units of half a side: sides that
        # differ would make a turn a shear.
        aspect = images.shape[2] / images.shape[3]
        theta = torch.stack(
            (
                torch.stack((cos / stretch, sin * stretch * aspect, signed[:, 3] * 2 * self.shift), dim=1),
                torch.stack((-sin / stretch / aspect, cos * stretch, signed[:, 4] * 2 * self.shift), dim=1),
            ),
            dim=1,
        )  # B 2 3
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved.round_().to(torch.uint8)


@dataclass(frozen=True)
class ColorJitterSpec(AugmentationSpec):
    """Brightness, contrast and saturation changed, and the colour channels mixed (a rotation of hue, near enough).

    Attributes:
        brightness: largest change of the factor on all values.
        contrast: largest change of the factor on the distance from the image's mean.
        saturation: largest change of the factor on the distance from grey.
        hue: largest rotation about the grey axis, in turns.
        grayscale: probability of losing all colour.
    """

    draws: ClassVar[int] = 5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) <= 1, self, name, "from 0 to 1")
        require(0 <= self.hue <= 0.5, self, "hue", "from 0 to 0.5")
        require(0 <= self.grayscale <= 1, self, "grayscale", "from 0 to 1")

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        signed = uniform * 2 - 1
        bright = 1 + signed[:, 0] * self.brightness
        contrast = 1 + signed[:, 1] * self.contrast
        colour = (1 + signed[:, 2] * self.saturation) * (uniform[:, 4] >= self.grayscale)
        # Everything is linear in the colours of a pixel, so one 3x3 matrix an image does all of it.
        grey = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
        turn = _hue_rotation(signed[:, 3] * self.hue * 2 * math.pi)  # B 3 3
        mix = grey + colour[:, None, None] * (turn - grey @ turn)
        x = images.float()
        mean = (grey[0] @ x.mean((2, 3)).T)[:, None, None, None]  # B 1 1 1
        gain = (bright * contrast)[:, None, None]
        changed = (
            torch.bmm(gain * mix, x.flatten(2)).view_as(x)
            + bright[:, None, None, None] * (1 - contrast[:, None, None, None]) * mean
        )
        return changed.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class RandomEraseSpec(AugmentationSpec):
    """A rectangle overwritten with one random colour (Zhong et al. 2017).

    Attributes:
        probability: of doing so.
        area: smallest and largest share of the image.
    """

    draws: ClassVar[int] = 8
    probability: float = 0.25
    area: tuple[float, float] = (0.02, 0.2)

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, self, "probability", "from 0 to 1")
        require(0 < self.area[0] <= self.area[1] <= 1, self, "area", "(smallest, largest), within 0 to 1")

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        height, width = images.shape[2:]
        area = self.area[0] + uniform[:, 1] * (self.area[1] - self.area[0])
        ratio = ((uniform[:, 2] * 2 - 1) * math.log(3)).exp().sqrt()  # of height to width, a third to three
        tall, wide = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
        top, left = uniform[:, 3] * (1 - tall), uniform[:, 4] * (1 - wide)
        row = (torch.arange(height) + 0.5) / height
        column = (torch.arange(width) + 0.5) / width
        inside = _between(row, top, tall)[:, :, None] & _between(column, left, wide)[:, None, :]  # B H W
        inside = inside & (uniform[:, 0] < self.probability)[:, None, None]
        colour = (uniform[:, 5:8] * 256).to(torch.uint8)[:, :, None, None]
        return torch.where(inside[:, None], colour, images)


def _between(place: Tensor, start: Tensor, length: Tensor) -> Tensor:
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _hue_rotation(angle: Tensor) -> Tensor:
    """B angles -> B 3 3, rotations about the grey axis (1, 1, 1) (Rodrigues' formula)."""
    third, cos, sin = 1 / 3, angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) * math.sqrt(third)
    return cos * torch.eye(3) + sin * cross + (1 - cos) * torch.full((3, 3), third)
