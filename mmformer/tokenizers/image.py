"""Images to tokens: linear patches (ViT, Dosovitskiy et al. 2020, §3.1) or a convolutional stem (Xiao et al. 2021).

Images travel as uint8 and are normalised here, on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.spec import require
from mmformer.tokenizers.tokenizer import TokenizerSpec, grid_tokens
from mmformer.types import Tokens


@dataclass(frozen=True)
class ImageTokenizerSpec(TokenizerSpec):
    """What image tokenizers share.

    Attributes:
        mean: of the three channels, on a scale of 0 to 1; subtracted.
        std: of the three channels, on a scale of 0 to 1; divided by.
    """

    modality: ClassVar[str] = "image"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        require(all(value > 0 for value in self.std), self, "std", "positive on each channel")

    @property
    def stride(self) -> int:
        """Pixels from one token to the next; it must divide height and width."""
        raise AssertionError("each image tokenizer says its own")


class ImageTokenizer(nn.Module):
    """Checks and normalises; the rest is the subclass's."""

    def __init__(self, spec: ImageTokenizerSpec) -> None:
        super().__init__()
        self.spec = spec

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 B 3 H W -> float32 B 3 H W.

        Raises:
            InputError: not uint8 B 3 H W, or a size that the stride does not divide.
        """
        name, stride = type(self.spec).__name__, self.spec.stride
        if image.ndim != 4 or image.shape[1] != 3 or image.dtype.is_floating_point or image.dtype.itemsize != 1:
            raise InputError(
                f"{name} reads images as uint8 of shape (batch, 3, height, width), "
                f"but was handed {str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}."
            )
        height, width = image.shape[2:]
        if height % stride or width % stride:
            raise InputError(
                f"{name} makes a token of every {stride}x{stride} pixels, which do not divide an image of "
                f"{height}x{width}: resize to {_round(height, stride)}x{_round(width, stride)}, or change the stride."
            )
        # One multiplication and one addition a pixel; Python floats, so that nothing is lost on the meta device.
        channels = [
            image[:, i].float().mul(1 / (255 * std)).sub(mean / std)
            for i, (mean, std) in enumerate(zip(self.spec.mean, self.spec.std, strict=True))
        ]
        return torch.stack(channels, dim=1)


@dataclass(frozen=True)
class ImagePatchesSpec(ImageTokenizerSpec):
    """Square patches, flattened and projected.

    Attributes:
        patch: side of a patch in pixels.
    """

    patch: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patch >= 1, self, "patch", "at least 1 pixel")

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, width: int) -> ImagePatches:
        return ImagePatches(self, width)


class ImagePatches(ImageTokenizer):
    def __init__(self, spec: ImagePatchesSpec, width: int) -> None:
        super().__init__(spec)
        self.patch = spec.patch
        self.projection = nn.Linear(3 * spec.patch**2, width)

    def forward(self, image: Tensor) -> Tokens:  # B 3 H W
        x = self.normalise(image)
        batch, _, height, width = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.view(batch, 3, rows, self.patch, columns, self.patch)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)  # B L (3 patch patch)
        return grid_tokens(self.projection(x), rows, columns)


@dataclass(frozen=True)
class ConvolutionalStemSpec(ImageTokenizerSpec):
    """3x3 convolutions of stride 2, each followed by a norm over its channels and a GELU; then a projection.

    The norm is over all channels and pixels of one image (GroupNorm of one group): unlike BatchNorm, it makes an
    image's tokens independent of the rest of its batch.

    Attributes:
        channels: of each convolution; their number sets the stride, 2 to the power of it.
    """

    channels: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.channels) >= 1 and min(self.channels) >= 1, self, "channels", "at least one, each at least 1")

    @property
    def stride(self) -> int:
        return int(2 ** len(self.channels))

    def build(self, width: int) -> ConvolutionalStem:
        return ConvolutionalStem(self, width)


class ConvolutionalStem(ImageTokenizer):
    def __init__(self, spec: ConvolutionalStemSpec, width: int) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        for before, after in zip((3, *spec.channels), spec.channels, strict=False):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Linear(spec.channels[-1], width)

    def forward(self, image: Tensor) -> Tokens:  # B 3 H W
        x = self.layers(self.normalise(image))  # B C rows columns
        rows, columns = x.shape[2:]
        return grid_tokens(self.projection(x.flatten(2).transpose(1, 2)), rows, columns)


def _round(size: int, stride: int) -> int:
    return max(1, round(size / stride)) * stride
