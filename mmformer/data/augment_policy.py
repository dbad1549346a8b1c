"""Augmentation policies of torchvision, which draw operations at random: RandAugment and TrivialAugment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.data.augment import AugmentationSpec
from mmformer.spec import require


@dataclass(frozen=True)
class PolicySpec(AugmentationSpec):
    """A transform of torchvision's, on each image by itself; it draws from a stream that the image's own one seeds."""

    draws: ClassVar[int] = 2

    @abstractmethod
    def transform(self) -> Callable[[Tensor], Tensor]:
        """uint8 3 H W to the same, at random."""

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        changed = []
        with torch.random.fork_rng(devices=[]):
            # A float32 has 24 random bits: two make a seed.
            for image, (high, low) in zip(images, (uniform.double() * 2**24).long().tolist(), strict=True):
                torch.manual_seed(high << 24 | low)
                changed.append(self._built(image))
        return torch.stack(changed)

    @cached_property
    def _built(self) -> Callable[[Tensor], Tensor]:
        return self.transform()


@dataclass(frozen=True)
class RandAugmentSpec(PolicySpec):
    """RandAugment (Cubuk et al. 2019, §3): some operations of 14, each of one magnitude.

    Attributes:
        operations: one after the other.
        magnitude: from 0, which changes nothing, to 30.
    """

    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        require(self.operations >= 1, self, "operations", "at least 1")
        require(0 <= self.magnitude <= 30, self, "magnitude", "from 0 to 30")

    def transform(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms.v2 import InterpolationMode, RandAugment

        # White, as pictures are padded: other colours would tell where a picture was turned.
        made: Callable[[Tensor], Tensor] = RandAugment(
            self.operations, self.magnitude, interpolation=InterpolationMode.BILINEAR, fill=255
        )
        return made


@dataclass(frozen=True)
class TrivialAugmentSpec(PolicySpec):
    """TrivialAugment (Müller and Hutter 2021, §3, the wide space): one operation of 14, of a random magnitude."""

    def transform(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

        made: Callable[[Tensor], Tensor] = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=255)
        return made
