"""Where a token stands: additive tables, fixed waves, and rotation, over any of the coordinate axes.

A position is three hooks that do nothing by default: ``embed`` adds to the input of a stack, ``rotary`` gives the
tables that attention rotates queries and keys by, ``bias`` adds to attention scores. The stack owns its position and
asks each hook once a pass. Special tokens (coordinate -1) have a row of their own in a learned table and are neither
moved by waves nor rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.spec import Catalogued, family, require
from mmformer.types import AXES, SPECIAL


class Rotary(NamedTuple):
    """Rotation tables for the first 2R features of every head."""

    cos: Tensor  # B or 1, 1, L, R, float32
    sin: Tensor  # B or 1, 1, L, R, float32


class Heads(NamedTuple):
    """A mixer's heads, as positions see them."""

    number: int
    width: int  # of one


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate feature i against feature i + R (RoFormer, Su et al. 2021, §3.2.2, in GPT-NeoX's layout).

    Args:
        x: B H L width of a head; features past 2R pass through.
    """
    half = table.cos.shape[-1]
    cos, sin = table.cos.to(x.dtype), table.sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@family
@dataclass(frozen=True)
class PositionSpec(Catalogued):
    """No position: attention sees a set."""

    cost: ClassVar[str] = "0"
    source: ClassVar[str] = "Vaswani et al. 2017, §3.5, without it"

    needs: ClassVar[Ability | None] = None
    """What a mixer must have that it serves; None: it serves all, through what enters the stack."""

    def build(self, width: int, heads: Heads | None) -> Position:
        """Args: width of the stack; heads: of the mixers that it serves, None where none has heads."""
        return Position()


class Position(nn.Module):
    """The hooks, doing nothing."""

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B L D, B L A -> B L D
        return x

    def rotary(self, pos: Tensor) -> Rotary | None:  # B L A
        return None

    def bias(self, query_pos: Tensor, key_pos: Tensor) -> Tensor | None:  # B Q A, B K A -> (B or 1) (H or 1) Q K
        return None


@dataclass(frozen=True)
class LearnedPositionSpec(PositionSpec):
    """A learned row for every place on a grid over the chosen axes, one of them for special tokens.

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column); (0,) is text, (1, 2) an image.
        sizes: how many places each of the axes has. A token beyond them is refused.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Gehring et al. 2017, §3.1"

    axes: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        _require_axes(self, self.axes)
        require(len(self.sizes) == len(self.axes), self, "sizes", f"one size for each of the axes {self.axes}")
        require(all(size >= 1 for size in self.sizes), self, "sizes", "at least 1 each")

    def build(self, width: int, heads: Heads | None) -> LearnedPosition:
        return LearnedPosition(self, width)


class LearnedPosition(Position):
    undecayed = ("weight",)

    def __init__(self, spec: LearnedPositionSpec, width: int) -> None:
        super().__init__()
        self.axes, self.sizes = spec.axes, spec.sizes
        self.weight = nn.Parameter(torch.empty(math.prod(spec.sizes) + 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        shared = unexpanded(pos)
        self._check(shared)
        row = torch.zeros_like(shared[..., 0])
        for axis, size in zip(self.axes, self.sizes, strict=True):
            row = row * size + shared[..., axis].clamp(min=0)
        row = torch.where(shared[..., self.axes[0]] == SPECIAL, 0, row + 1)
        return x + F.embedding(row, self.weight).to(x.dtype)

    def _check(self, pos: Tensor) -> None:
        # Reading a maximum would make an accelerator wait, and its own index check catches the same mistake.
        if torch.compiler.is_compiling() or pos.device.type != "cpu" or not pos.numel():
            return
        for axis, size in zip(self.axes, self.sizes, strict=True):
            highest = int(pos[..., axis].max())
            if highest >= size:
                raise InputError(
                    f"LearnedPosition has {size} places on axis {axis}, but a token stands at {highest}: "
                    f"raise LearnedPositionSpec.sizes, or shorten the input."
                )


@dataclass(frozen=True)
class SinusoidalPositionSpec(PositionSpec):
    """Fixed waves: axes (0,) is Vaswani et al. 2017 §3.5, axes (1, 2) the 2-D sin-cos of
    MAE (He et al. 2021), whose published code has the columns' half first: that is axes (2, 1).

    The width is shared out evenly between the axes; each gets its sines first, then its cosines.

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column).
        base: the longest wave is 2π × base.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Vaswani et al. 2017, §3.5; two axes: MAE, He et al. 2021"

    axes: tuple[int, ...] = (0,)
    base: float = 10_000.0

    def __post_init__(self) -> None:
        _require_axes(self, self.axes)
        require(self.base > 1, self, "base", "above 1")

    def build(self, width: int, heads: Heads | None) -> SinusoidalPosition:
        if width % (2 * len(self.axes)):
            raise InputError(
                f"SinusoidalPositionSpec over {len(self.axes)} axes needs a width that is a multiple of "
                f"{2 * len(self.axes)}, but the stack's width is {width}."
            )
        return SinusoidalPosition(self, width)


class SinusoidalPosition(Position):
    def __init__(self, spec: SinusoidalPositionSpec, width: int) -> None:
        super().__init__()
        self.axes, self.base, self.width = spec.axes, spec.base, width

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        shared = unexpanded(pos)
        angle = _angles(shared, self.axes, self.width // (2 * len(self.axes)), self.base)  # B L axes F
        wave = torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)  # B L D
        special = shared[..., self.axes[0]] == SPECIAL
        return x + wave.masked_fill(special[..., None], 0.0).to(x.dtype)


@dataclass(frozen=True)
class RotaryPositionSpec(PositionSpec):
    """Rotary position over one or more axes (RoFormer, Su et al. 2021; over two axes as in RoPE-ViT, Heo et al. 2024).

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column); each rotates an equal share of the features.
        base: the slowest rotation turns once in about 2π × base steps. Short axes (image grids) want a low one.
        fraction: share of a head's features that rotate; the rest carry content only.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "RoFormer, Su et al. 2021; two axes: RoPE-ViT, Heo et al. 2024"

    needs: ClassVar[Ability | None] = "rotary"

    axes: tuple[int, ...] = (0,)
    base: float = 10_000.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        _require_axes(self, self.axes)
        require(self.base > 1, self, "base", "above 1")
        require(0 < self.fraction <= 1, self, "fraction", "above 0 and at most 1")

    def build(self, width: int, heads: Heads | None) -> RotaryPosition:
        assert heads is not None, "StackSpec refuses a stack without heads"
        frequencies = int(heads.width * self.fraction) // (2 * len(self.axes))
        if frequencies < 1:
            raise InputError(
                f"RotaryPositionSpec over {len(self.axes)} axes needs at least {2 * len(self.axes)} rotated features "
                f"in a head, but heads are {heads.width} wide and the fraction is {self.fraction}."
            )
        return RotaryPosition(self, frequencies)


class RotaryPosition(Position):
    def __init__(self, spec: RotaryPositionSpec, frequencies: int) -> None:
        super().__init__()
        self.axes, self.base, self.frequencies = spec.axes, spec.base, frequencies

    def rotary(self, pos: Tensor) -> Rotary:
        # A special token's angle is that of 0, none; clamping is cheaper than a mask.
        angle = _angles(unexpanded(pos).clamp(min=0), self.axes, self.frequencies, self.base)  # B L axes F
        angle = angle.flatten(-2)[:, None]  # B 1 L R
        return Rotary(angle.cos(), angle.sin())


def _angles(pos: Tensor, axes: tuple[int, ...], frequencies: int, base: float) -> Tensor:
    """Position times frequency, in float32: B L A -> B L len(axes) frequencies.

    The frequencies are computed on each pass: a buffer would be lost when a model is built on the meta device.
    """
    exponent = torch.arange(frequencies, device=pos.device, dtype=torch.float32) / frequencies
    places = torch.stack([pos[..., axis] for axis in axes], dim=-1).float()  # B L axes
    return places[..., None] * base**-exponent


def unexpanded(pos: Tensor) -> Tensor:
    """One row instead of B, when all rows of a batch were expanded from it (images of one size)."""
    return pos[:1] if pos.stride(0) == 0 else pos


def _require_axes(spec: PositionSpec, axes: tuple[int, ...]) -> None:
    good = len(axes) >= 1 and len(set(axes)) == len(axes) and all(0 <= axis < AXES for axis in axes)
    require(good, spec, "axes", f"different axes out of 0 to {AXES - 1}")
