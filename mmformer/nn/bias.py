"""Relative position as a bias on attention scores: fixed slopes, buckets of distances, a table of offsets.

A bias is made once a pass and shared by all layers of a stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import Ability
from mmformer.nn.position import (
    Heads,
    Position,
    PositionSpec,
    require_axes,
    require_inside,
    require_sizes,
    resample,
    unexpanded,
)
from mmformer.spec import require
from mmformer.types import AXES, is_special


@dataclass(frozen=True)
class ALiBiPositionSpec(PositionSpec):
    """ALiBi: scores fall in proportion to the distance, with a fixed slope for each head.

    The distance is taken either way. In a causal pass, where keys stand before their query, that is the paper's form;
    elsewhere it is its symmetric one. Special tokens are at no distance.

    Attributes:
        axes: coordinate axes (0 time, 1 row, 2 column) over which distances are measured.
        metric: of distances over several axes.
    """

    cost: ClassVar[str] = "L²·heads"
    source: ClassVar[str] = "ALiBi, Press et al. 2022, §3; two axes: CROMA, Fuller et al. 2023, §3"

    needs: ClassVar[frozenset[Ability]] = frozenset({"bias"})

    axes: tuple[int, ...] = (0,)
    metric: Literal["euclidean", "manhattan"] = "euclidean"

    def __post_init__(self) -> None:
        require_axes(self, self.axes)
        require(self.metric in ("euclidean", "manhattan"), self, "metric", "'euclidean' or 'manhattan'")
        same = len(self.axes) == 1 and self.metric != "euclidean"
        require(not same, self, "metric", "left alone where there is one axis, on which all metrics are one")

    def build(self, width: int, heads: Heads | None) -> ALiBiPosition:
        assert heads is not None, "StackSpec refuses a stack without heads"
        return ALiBiPosition(self, heads.number)


class ALiBiPosition(Position):
    def __init__(self, spec: ALiBiPositionSpec, heads: int) -> None:
        super().__init__()
        self.axes, self.metric, self.heads = spec.axes, spec.metric, heads

    def bias(self, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        query, key = unexpanded(query_pos), unexpanded(key_pos)
        ahead = [_ahead(query, key, axis).float() for axis in self.axes]
        if len(ahead) == 1 or self.metric == "manhattan":
            distance = torch.stack([each.abs() for each in ahead]).sum(0)
        else:
            distance = torch.stack([each.square() for each in ahead]).sum(0).sqrt()
        distance = distance.masked_fill(_with_special(query, key), 0.0)  # B Q K
        return -slopes(self.heads, query.device)[:, None, None] * distance[:, None]


def slopes(heads: int, device: torch.device) -> Tensor:
    """ALiBi's, one for each head: powers of two, evenly spaced in the exponent down to 2⁻⁸, float32.

    Where heads are no power of two, as in the paper's code: those of the next lower power, then every other one of the
    next higher.
    """
    power = 2 ** (heads.bit_length() - 1)
    step = torch.arange(1, power + 1, device=device, dtype=torch.float32)
    between = step[: heads - power] - 0.5
    return torch.exp2(-8 * torch.cat((step, between)) / power)


@dataclass(frozen=True)
class RelativeBucketPositionSpec(PositionSpec):
    """T5's: a learned bias for each head and bucket of distances along one axis; near distances have a bucket each, far
    ones share theirs, in steps of equal ratio. Pairs with a special token have none.

    Attributes:
        axis: the coordinate axis (0 time, 1 row, 2 column).
        buckets: how many.
        max_distance: from which on all are in the last bucket.
        bidirectional: half of the buckets are for keys after the query; otherwise those are in the bucket of distance
            0, and the others reach further (T5's decoder).
    """

    cost: ClassVar[str] = "L²·heads"
    source: ClassVar[str] = "T5, Raffel et al. 2020, §2.1"

    needs: ClassVar[frozenset[Ability]] = frozenset({"bias"})

    axis: int = 0
    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.axis < AXES, self, "axis", f"from 0 to {AXES - 1}")
        least = 4 if self.bidirectional else 2
        good = self.buckets >= least and self.buckets % (least // 2) == 0
        require(good, self, "buckets", "an even number from 4 on" if self.bidirectional else "at least 2")
        exact = self.buckets // least
        require(self.max_distance > exact, self, "max_distance", f"above {exact}, the buckets of one distance each")

    def build(self, width: int, heads: Heads | None) -> RelativeBucketPosition:
        assert heads is not None, "StackSpec refuses a stack without heads"
        return RelativeBucketPosition(self, heads.number)


class RelativeBucketPosition(Position):
    undecayed = ("weight",)

    def __init__(self, spec: RelativeBucketPositionSpec, heads: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.buckets, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def bias(self, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        query, key = unexpanded(query_pos), unexpanded(key_pos)
        far = self.spec.max_distance
        # Buckets are found once for each distance, not for each pair.
        table = self.weight[self._bucket(torch.arange(-far, far + 1, device=query.device))]
        table = F.pad(table, (0, 0, 0, 1))  # (2 far + 2) H; the last one is of special tokens
        index = _ahead(query, key, self.spec.axis).clamp(-far, far) + far
        return _looked_up(table, index.masked_fill(_with_special(query, key), 2 * far + 1))

    def _bucket(self, ahead: Tensor) -> Tensor:
        """The bucket of a key so many steps after its query."""
        buckets, after = self.spec.buckets, torch.zeros_like(ahead)
        if self.spec.bidirectional:
            buckets //= 2
            after, distance = (ahead > 0) * buckets, ahead.abs()
        else:
            distance = (-ahead).clamp(min=0)
        exact = buckets // 2
        ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(self.spec.max_distance / exact)
        shared = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return after + torch.where(distance < exact, distance, shared)


@dataclass(frozen=True)
class RelativeGridPositionSpec(PositionSpec):
    """Swin's: a learned bias for each head and offset between two places of a grid. As in BEiT, there are three more:
    for what a special token sees, for what sees it, and between special tokens.

    Attributes:
        axes: two coordinate axes (0 time, 1 row, 2 column).
        sizes: how many places each of them has. A token beyond them is refused.
    """

    cost: ClassVar[str] = "L²·heads"
    source: ClassVar[str] = "Swin, Liu et al. 2021, §3.2; special tokens: BEiT, Bao et al. 2021, its published code"

    needs: ClassVar[frozenset[Ability]] = frozenset({"bias"})

    axes: tuple[int, int] = (1, 2)
    sizes: tuple[int, int] = (14, 14)

    def __post_init__(self) -> None:
        require_axes(self, self.axes)
        require_sizes(self, self.axes, self.sizes)

    @property
    def limits(self) -> Mapping[int, int]:
        return dict(zip(self.axes, self.sizes, strict=True))

    @property
    def offsets(self) -> tuple[int, int]:
        """How many there are along each axis."""
        return 2 * self.sizes[0] - 1, 2 * self.sizes[1] - 1

    def build(self, width: int, heads: Heads | None) -> RelativeGridPosition:
        assert heads is not None, "StackSpec refuses a stack without heads"
        return RelativeGridPosition(self, heads.number)


class RelativeGridPosition(Position):
    undecayed = ("weight",)

    def __init__(self, spec: RelativeGridPositionSpec, heads: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(math.prod(spec.offsets) + 3, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def bias(self, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        query, key = unexpanded(query_pos), unexpanded(key_pos)
        require_inside(self, self.spec.axes, self.spec.sizes, key)
        (rows, columns), (row, column) = self.spec.sizes, self.spec.axes
        down = _ahead(query, key, row) + rows - 1
        index = down * self.spec.offsets[1] + _ahead(query, key, column) + columns - 1
        last = math.prod(self.spec.offsets)
        asking, asked = is_special(query)[:, :, None], is_special(key)[:, None, :]
        index = torch.where(asking, last, torch.where(asked, last + 1, index))
        return _looked_up(self.weight, index.masked_fill(asking & asked, last + 2))

    def resized(self, weight: Tensor, spec: PositionSpec) -> Tensor | None:
        if not isinstance(spec, RelativeGridPositionSpec) or spec.axes != self.spec.axes:
            return None
        return torch.cat((resample(weight[:-3], spec.offsets, self.spec.offsets), weight[-3:]))


def _ahead(query: Tensor, key: Tensor, axis: int) -> Tensor:
    """B Q K: how far each key stands after each query."""
    return key[:, None, :, axis] - query[:, :, None, axis]


def _with_special(query: Tensor, key: Tensor) -> Tensor:
    """B Q K: whether either is a special token."""
    return is_special(query)[:, :, None] | is_special(key)[:, None, :]


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """B H Q K: the rows, each of H numbers, that B Q K indexes name."""
    # Heads first, as attention reads them; one index is a quarter faster than one with a colon beside it.
    return table.T.index_select(1, index.flatten()).view(table.shape[1], *index.shape).transpose(0, 1)
