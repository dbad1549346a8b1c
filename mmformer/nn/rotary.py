"""Rotation: queries and keys turn by angles that grow with where their tokens stand, so that their products depend on
how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.position import Heads, Position, PositionSpec, Rotary, angles, rates, require_axes, unexpanded
from mmformer.nn.rotary_scaling import RotaryScalingSpec
from mmformer.spec import require


@dataclass(frozen=True)
class RotaryPositionSpec(PositionSpec):
    """Rotary position over one or more axes (RoPE); each axis turns an equal share of a head's features.

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column).
        base: the slowest rotation turns once in about 2π × base steps. Short axes (image grids) want a low one, long
            texts a high one.
        fraction: share of a head's features that rotate; the rest carry content only.
        scaling: how a model that was trained on short rows serves long ones; None: as it was trained.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "RoFormer, Su et al. 2021, §3.2.2; two axes: RoPE-ViT, Heo et al. 2024, §3.2"

    needs: ClassVar[frozenset[Ability]] = frozenset({"rotary"})

    axes: tuple[int, ...] = (0,)
    base: float = 10_000.0
    fraction: float = 1.0
    scaling: RotaryScalingSpec | None = None

    def __post_init__(self) -> None:
        require_axes(self, self.axes)
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
        self.axes, self.base, self.frequencies, self.scaling = spec.axes, spec.base, frequencies, spec.scaling

    def rotary(self, pos: Tensor) -> Rotary:
        turning, gain = rates(self.frequencies, self.base, pos.device), 1.0
        if self.scaling is not None:
            turning, gain = self.scaling.scaled(turning, self.base), self.scaling.gain
        # A special token's angle is that of 0, none; clamping is cheaper than a mask.
        angle = angles(unexpanded(pos).clamp(min=0), self.axes, turning)  # B L axes F
        return _table(angle.flatten(-2)[:, None], gain)  # B 1 L R


@dataclass(frozen=True)
class MixedRotaryPositionSpec(PositionSpec):
    """Rotary position over two axes whose rates are learned, for each head (RoPE-Mixed).

    A pair of features turns with both coordinates at once, so that diagonals count as rows and columns do. All layers
    of a stack share the rates; the paper has a set for each.

    Attributes:
        axes: two coordinate axes (0 time, 1 row, 2 column).
        base: of the rates to begin with: those of rotation over two axes, their directions turned by chance.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "RoPE-ViT, Heo et al. 2024, §3.2"

    needs: ClassVar[frozenset[Ability]] = frozenset({"rotary", "rotary_heads"})

    axes: tuple[int, int] = (1, 2)
    base: float = 10.0

    def __post_init__(self) -> None:
        require_axes(self, self.axes)
        require(self.base > 1, self, "base", "above 1")

    def build(self, width: int, heads: Heads | None) -> MixedRotaryPosition:
        assert heads is not None, "StackSpec refuses a stack without heads"
        if heads.width % 4:
            raise InputError(
                f"MixedRotaryPositionSpec needs heads whose width is a multiple of 4, but they are {heads.width} wide."
            )
        return MixedRotaryPosition(self, heads)


class MixedRotaryPosition(Position):
    undecayed = ("rate",)

    def __init__(self, spec: MixedRotaryPositionSpec, heads: Heads) -> None:
        super().__init__()
        self.axes, self.base = spec.axes, spec.base
        self.rate = nn.Parameter(torch.empty(2, heads.number, heads.width // 2))  # axes H R
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _, heads, pairs = self.rate.shape
        size = rates(pairs // 2, self.base, self.rate.device)
        along = 2 * math.pi * torch.rand(heads, 1, device=self.rate.device)
        across = along + math.pi / 2
        with torch.no_grad():
            self.rate[0] = torch.cat((size * along.cos(), size * across.cos()), dim=1)
            self.rate[1] = torch.cat((size * along.sin(), size * across.sin()), dim=1)

    def rotary(self, pos: Tensor) -> Rotary:
        places = unexpanded(pos).clamp(min=0)[:, None, :, None].float()  # B 1 L 1 A
        # Sums of products, not a matrix product: autocast would make that of half the precision.
        turns = (places[..., axis] * rate[:, None] for axis, rate in zip(self.axes, self.rate.float(), strict=True))
        return _table(sum(turns, torch.zeros((), device=pos.device)), 1.0)  # B H L R


def _table(angle: Tensor, gain: float) -> Rotary:
    cos, sin = angle.cos(), angle.sin()
    return Rotary(cos, sin) if gain == 1 else Rotary(cos * gain, sin * gain)
