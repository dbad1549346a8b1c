"""Images to tokens: linear patches (ViT, Dosovitskiy et al. 2020, §3.1) or a convolutional stem (Xiao et al. 2021).

Images travel as uint8 and are normalised here, on the device. Those of one size are cut into patches here too; those of
sizes of their own travel as patches, for a canvas that held a tall one and a wide one would be mostly empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.spec import require
from mmformer.tokenizers.mobilevit import MobileViTBlockSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec, grid_tokens
from mmformer.types import Patches, Tokens


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

    def normalise(self, image: Tensor | Patches) -> Tensor:
        """uint8 B 3 H W -> float32 B 3 H W; what is float32 is normalised already.

        Raises:
            InputError: neither of these B 3 H W, but patches perhaps, or a size that the stride does not divide.
        """
        name, stride = type(self.spec).__name__, self.spec.stride
        if isinstance(image, Patches):
            raise InputError(
                f"{name} reads whole pictures of one size, but was handed patches of pictures in their own proportions "
                f"(fit: native): ImagePatchesSpec reads those; or take another fit."
            )
        if image.ndim != 4 or image.shape[1] != 3 or image.dtype not in (torch.uint8, torch.float32):
            raise InputError(
                f"{name} reads images as uint8, or as float32 that is normalised already, of shape (batch, 3, height, "
                f"width), but was handed {str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}."
            )
        height, width = image.shape[2:]
        if height % stride or width % stride:
            raise InputError(
                f"{name} makes a token of every {stride}x{stride} pixels, which do not divide an image of "
                f"{height}x{width}: resize to {_round(height, stride)}x{_round(width, stride)}, or change the stride."
            )
        return self.scale(image, 1) if image.dtype == torch.uint8 else image

    def scale(self, image: Tensor, axis: int) -> Tensor:
        """uint8, whose channels are an axis, -> float32."""
        # One multiplication and one addition a pixel; Python floats, so that nothing is lost on the meta device.
        channels = [
            image.select(axis, i).float().mul(1 / (255 * std)).sub(mean / std)
            for i, (mean, std) in enumerate(zip(self.spec.mean, self.spec.std, strict=True))
        ]
        return torch.stack(channels, dim=axis)


@dataclass(frozen=True)
class ImagePatchesSpec(ImageTokenizerSpec):
    """Square patches, flattened and projected.

    Attributes:
        patch: side of a patch in pixels.
        bias: whether the projection has one (CLIP's has none).
        remainder: pixels that pictures have past their last whole patch, below and to the right, and that are not read:
            6 where SigLIP reads 384 in patches of 14.
    """

    cost: ClassVar[str] = "L·patch²·D"
    source: ClassVar[str] = "ViT, Dosovitskiy et al. 2020, §3.1"

    patch: int = 16
    bias: bool = True
    remainder: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patch >= 1, self, "patch", "at least 1 pixel")
        require(0 <= self.remainder < self.patch, self, "remainder", f"0 to {self.patch - 1}, less than a patch")

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, width: int) -> ImagePatches:
        return ImagePatches(self, width)


class ImagePatches(ImageTokenizer):
    def __init__(self, spec: ImagePatchesSpec, width: int) -> None:
        super().__init__(spec)
        self.patch, self.remainder = spec.patch, spec.remainder
        self.projection = nn.Linear(3 * spec.patch**2, width, bias=spec.bias)

    def forward(self, image: Tensor | Patches) -> Tokens:  # B 3 H W
        """Tokens of pictures of one size, or, with those past each one's last not valid, of sizes of their own.

        Raises:
            InputError: not uint8 of these shapes, or another patch than the spec's.
        """
        if isinstance(image, Patches):
            return self._native(image)
        x = self.normalise(self._whole(image))
        batch, _, height, width = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.view(batch, 3, rows, self.patch, columns, self.patch)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)  # B L (3 patch patch)
        return grid_tokens(self.projection(x), rows, columns)

    def _whole(self, image: Tensor) -> Tensor:
        """Pictures without what remains past their last whole patch."""
        remainder = self.remainder
        if not remainder or image.ndim != 4:
            return image
        height, width = image.shape[2:]
        if height % self.patch != remainder or width % self.patch != remainder:
            raise InputError(
                f"ImagePatchesSpec.remainder is {remainder}, the pixels past the last patch of "
                f"{self.patch}x{self.patch}, but the pictures handed in are of {height}x{width}: resize them, or set "
                f"remainder."
            )
        return image[:, :, : height - remainder, : width - remainder]

    def _native(self, image: Patches) -> Tokens:
        if image.pixels.shape[2:] != (3, self.patch, self.patch) or image.pixels.dtype != torch.uint8:
            raise InputError(
                f"ImagePatchesSpec.patch is {self.patch}, so that it reads patches as uint8 of shape (batch, length, "
                f"3, {self.patch}, {self.patch}), but was handed {str(image.pixels.dtype).removeprefix('torch.')} of "
                f"shape {tuple(image.pixels.shape)}: make the patch of the image's transform the same."
            )
        x = self.projection(self.scale(image.pixels, 2).flatten(2))  # B L D
        place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)  # B L
        rows, columns = image.grid[:, :1], image.grid[:, 1:]
        valid = place < rows * columns
        pos = torch.stack((torch.zeros_like(place), place // columns, place % columns), dim=-1)  # B L A
        return Tokens(x, pos * valid[..., None], valid)


@dataclass(frozen=True)
class ConvolutionalStemSpec(ImageTokenizerSpec):
    """3x3 convolutions, each but the last followed by a norm and a GELU; the last one makes the tokens.

    The norm is over the channels of each place: unlike BatchNorm, it leaves an image's tokens independent of the rest
    of its batch.

    Attributes:
        channels: of each convolution but the last, whose channels are the stack's width.
        strides: of each convolution, 1 or 2, so one more than the channels; none: 2 each. Those of stride 1 see fine
            detail before it is pooled away, which small pictures reward. A token's side is the product.
        norm: after each convolution but the last.
        blocks: MobileViT's, one after each convolution but the last, or None where there is none; (): nowhere.
    """

    cost: ClassVar[str] = "L·channels²"
    source: ClassVar[str] = "Xiao et al. 2021, Early convolutions help transformers see better, §3"

    channels: tuple[int, ...] = (32, 64)
    strides: tuple[int, ...] | None = None
    norm: NormSpec = field(default_factory=LayerNormSpec)
    blocks: tuple[MobileViTBlockSpec | None, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(number >= 1 for number in self.channels), self, "channels", "at least 1 each")
        wanted = f"1 or 2 for each of the {len(self.channels) + 1} convolutions (one more than the channels)"
        require(set(self.each_stride) <= {1, 2}, self, "strides", wanted)
        require(len(self.each_stride) == len(self.channels) + 1, self, "strides", wanted)
        fits = len(self.blocks) in (0, len(self.channels))
        require(fits, self, "blocks", f"none, or a block or None for each of the {len(self.channels)} channels")

    @property
    def each_stride(self) -> tuple[int, ...]:
        """Of each convolution, the last one's too."""
        return (2,) * (len(self.channels) + 1) if self.strides is None else self.strides

    @property
    def stride(self) -> int:
        return math.prod(self.each_stride)

    def build(self, width: int) -> ConvolutionalStem:
        return ConvolutionalStem(self, width)


class ConvolutionalStem(ImageTokenizer):
    def __init__(self, spec: ConvolutionalStemSpec, width: int) -> None:
        super().__init__(spec)
        channels = (3, *spec.channels, width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1)
            for (before, after), stride in zip(pairwise(channels), spec.each_stride, strict=True)
        )
        self.norms = nn.ModuleList(spec.norm.build(number) for number in spec.channels)
        blocks = spec.blocks or (None,) * len(spec.channels)
        self.blocks = nn.ModuleList(
            nn.Identity() if block is None else block.build(number, spec.norm)
            for block, number in zip(blocks, spec.channels, strict=True)
        )

    def forward(self, image: Tensor | Patches) -> Tokens:  # B 3 H W, and no Patches
        # Channels last in memory: what the norms and the tokens want, and the faster convolution on a CPU.
        x = self.normalise(image).contiguous(memory_format=torch.channels_last)
        for convolution, norm, block in zip(self.convolutions, self.norms, self.blocks, strict=False):
            x = F.gelu(norm(convolution(x).permute(0, 2, 3, 1)), approximate="tanh")  # B H W C
            x = block(x).permute(0, 3, 1, 2)  # B C H W
        x = self.convolutions[-1](x)  # B D rows columns
        rows, columns = x.shape[2:]
        return grid_tokens(x.permute(0, 2, 3, 1).flatten(1, 2), rows, columns)


def _round(size: int, stride: int) -> int:
    return max(1, round(size / stride)) * stride
