"""Where a token stands, over any of the coordinate axes: the hooks, and what is added to tokens (tables and waves).

A position is three hooks that do nothing by default: ``embed`` adds to the input of a stack, ``rotary`` gives the
tables that attention rotates queries and keys by (``nn/rotary.py``), ``bias`` adds to attention scores
(``nn/bias.py``). The stack owns its position and asks each hook once a pass. Special tokens (coordinates below 0) may
have rows of their own in learned tables and are neither moved by waves nor rotated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.precision import exact_dtype
from mmformer.spec import Catalogued, family, require
from mmformer.types import AXES, SPECIAL, is_special


class Rotary(NamedTuple):
    """Rotation tables for the first 2R features of every head."""

    cos: Tensor  # B or 1, H or 1, L, R, float32
    sin: Tensor  # B or 1, H or 1, L, R, float32


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

    needs: ClassVar[frozenset[Ability]] = frozenset()
    """What a mixer must have that it serves; nothing: it serves all, through what enters the stack."""

    @property
    def limits(self) -> Mapping[int, int]:
        """How many places an axis has, where it has an end."""
        return {}

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

    def resized(self, weight: Tensor, spec: PositionSpec) -> Tensor | None:
        """The table that a position of another spec has learned as its ``weight``, for this one's sizes; None: neither
        is such a table, or they differ in more than their sizes."""
        return None


@dataclass(frozen=True)
class LearnedPositionSpec(PositionSpec):
    """A learned row for every place on a grid over the chosen axes, and for the first special tokens.

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column); (0,) is text, (1, 2) an image.
        sizes: how many places each of the axes has. A token beyond them is refused.
        special: how many special tokens have a row, each its own: the class token, then the registers. To further ones
            nothing is added (DINOv2's registers; 0 is timm's ``no_embed_class``).
        learned: sizes of the table that is learned, which each pass resizes to ``sizes`` (bicubic over two axes, linear
            over one): weights that were trained at one size serve another. None: as ``sizes``.
        antialias: whether a table that shrinks is smoothed first (timm; DINOv2's own code does not).
        fixed: training leaves the table as it is, and it starts as waves, the last axis' first, and zero for special
            tokens (MAE, He et al. 2021, its published code): a table, for it travels with a model's weights.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Gehring et al. 2017, §3.1; another size: ViT, Dosovitskiy et al. 2020, §3.2"

    axes: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = (512,)
    learned: tuple[int, ...] | None = None
    special: int = 1
    antialias: bool = True
    fixed: bool = False

    def __post_init__(self) -> None:
        require_axes(self, self.axes)
        require_sizes(self, self.axes, self.sizes)
        require(self.special >= 0, self, "special", "at least 0")
        if self.learned is not None:
            good = len(self.learned) == len(self.axes) <= 2 and all(size >= 1 for size in self.learned)
            require(good, self, "learned", f"None, or one size for each of the axes {self.axes}, of which two at most")

    @property
    def limits(self) -> Mapping[int, int]:
        return dict(zip(self.axes, self.sizes, strict=True))

    def build(self, width: int, heads: Heads | None) -> LearnedPosition:
        if self.fixed:
            _require_width(self, self.axes, width)
        return LearnedPosition(self, width)


class LearnedPosition(Position):
    undecayed = ("weight",)

    def __init__(self, spec: LearnedPositionSpec, width: int) -> None:
        super().__init__()
        self.axes, self.sizes, self.special = spec.axes, spec.sizes, spec.special
        self.learned, self.antialias = spec.learned or spec.sizes, spec.antialias
        number = spec.special + math.prod(self.learned)
        self.weight = nn.Parameter(torch.empty(number, width), requires_grad=not spec.fixed)  # special tokens first
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight.requires_grad:
            nn.init.trunc_normal_(self.weight, std=0.02)
            return
        with torch.no_grad():
            self.weight.zero_()[self.special :] = _waves(self.learned, self.weight.shape[1], self.weight.device)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        shared = unexpanded(pos)
        require_inside(self, self.axes, self.sizes, shared)
        row = torch.zeros_like(shared[..., 0])
        for axis, size in zip(self.axes, self.sizes, strict=True):
            row = row * size + shared[..., axis].clamp(min=0)
        number = SPECIAL - shared[..., 0]  # of a special token: 0 is the first
        row = torch.where(number >= 0, number, row + self.special)
        without = number >= self.special
        added = F.embedding(row.masked_fill(without, 0), self._table())
        return x + added.masked_fill(without[..., None], 0.0).to(x.dtype)

    def _table(self) -> Tensor:
        if self.learned == self.sizes:
            return self.weight
        special, places = self.weight[: self.special], self.weight[self.special :]
        return torch.cat((special, resample(places, self.learned, self.sizes, self.antialias)))

    def resized(self, weight: Tensor, spec: PositionSpec) -> Tensor | None:
        if not isinstance(spec, LearnedPositionSpec) or len(self.axes) > 2:
            return None
        if (spec.axes, spec.special) != (self.axes, self.special):
            return None
        special, places = weight[: self.special], weight[self.special :]
        return torch.cat((special, resample(places, spec.learned or spec.sizes, self.learned, self.antialias)))


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
        require_axes(self, self.axes)
        require(self.base > 1, self, "base", "above 1")

    def build(self, width: int, heads: Heads | None) -> SinusoidalPosition:
        _require_width(self, self.axes, width)
        return SinusoidalPosition(self, width)


class SinusoidalPosition(Position):
    def __init__(self, spec: SinusoidalPositionSpec, width: int) -> None:
        super().__init__()
        self.axes, self.base, self.width = spec.axes, spec.base, width

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        shared = unexpanded(pos)
        turning = rates(self.width // (2 * len(self.axes)), self.base, pos.device)
        angle = angles(shared, self.axes, turning)  # B L axes F
        wave = torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)  # B L D
        return x + wave.masked_fill(is_special(shared)[..., None], 0.0).to(x.dtype)


def _waves(sizes: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """A row of waves for every place on a grid, in float64: places width."""
    number = width // (2 * len(sizes))
    turning = 10_000.0 ** (-torch.arange(number, device=device, dtype=torch.float64) / number)
    places = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    angle = [place.flatten()[:, None] * turning for place in reversed(places)]
    return torch.cat([wave for each in angle for wave in (each.sin(), each.cos())], dim=1)


def rates(frequencies: int, base: float, device: torch.device) -> Tensor:
    """How far each wave turns in a step, from 1 down to nearly 1 / base: frequencies, float32.

    They are computed on each pass: a buffer would be lost when a model is built on the meta device.
    """
    exponent = torch.arange(frequencies, device=device, dtype=torch.float32) / frequencies
    return base**-exponent


def angles(pos: Tensor, axes: tuple[int, ...], turning: Tensor) -> Tensor:
    """Position times rate, in float32: B L A -> B L len(axes) frequencies."""
    places = torch.stack([pos[..., axis] for axis in axes], dim=-1).float()  # B L axes
    return places[..., None] * turning


def unexpanded(pos: Tensor) -> Tensor:
    """One row instead of B, when all rows of a batch were expanded from it (images of one size)."""
    return pos[:1] if pos.stride(0) == 0 else pos


def _require_width(spec: PositionSpec, axes: tuple[int, ...], width: int) -> None:
    if width % (2 * len(axes)):
        raise InputError(
            f"{type(spec).__name__} over {len(axes)} axes needs a width that is a multiple of {2 * len(axes)}, but the "
            f"stack's width is {width}."
        )


def require_axes(spec: PositionSpec, axes: tuple[int, ...]) -> None:
    """Refuse coordinate axes that there are not, or that are named twice."""
    good = len(axes) >= 1 and len(set(axes)) == len(axes) and all(0 <= axis < AXES for axis in axes)
    require(good, spec, "axes", f"different axes out of 0 to {AXES - 1}")


def require_sizes(spec: PositionSpec, axes: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Refuse a table's sizes that do not fit its axes."""
    require(len(sizes) == len(axes), spec, "sizes", f"one size for each of the axes {axes}")
    require(all(size >= 1 for size in sizes), spec, "sizes", "at least 1 each")


def require_inside(position: Position, axes: tuple[int, ...], sizes: tuple[int, ...], pos: Tensor) -> None:
    """Refuse tokens that stand past a table's end.

    Raises:
        InputError: how far the table goes on which axis, where the token stands, what to raise.
    """
    # Reading a maximum would make an accelerator wait, and its own index check catches the same mistake.
    if torch.compiler.is_compiling() or pos.device.type != "cpu" or not pos.numel():
        return
    for axis, size in zip(axes, sizes, strict=True):
        highest = int(pos[..., axis].max())
        if highest >= size:
            name = type(position).__name__
            raise InputError(
                f"{name} has {size} places on axis {axis}, but a token stands at {highest}: "
                f"raise {name}Spec.sizes, or shorten the input."
            )


def resample(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], antialias: bool = True) -> Tensor:
    """A table over a grid, for a grid of other sizes: bicubic over two axes, linear over one.

    As ``resample_abs_pos_embed`` of timm does.

    Args:
        table: (product of old) D.
        old: sizes of its grid, of one or two axes.
        new: sizes of the grid that is wanted.
        antialias: smooth what shrinks.
    """
    if old == new:
        return table
    height, width = (1, *old)[-2:]
    precise = table.to(exact_dtype(table))
    grid = precise.T.reshape(1, -1, height, width)  # 1 D height width
    mode = "bicubic" if len(old) == 2 else "bilinear"  # over one row, bilinear is linear
    grid = F.interpolate(grid, (1, *new)[-2:], mode=mode, antialias=antialias)
    return grid[0].flatten(1).T.to(table.dtype)
