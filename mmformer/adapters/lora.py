"""LoRA: what training changes of a matrix is a product of two thin ones (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.adapters.adapter import Adapter, Block, LinearAdapterSpec, changed
from mmformer.nn.dropout import Dropout
from mmformer.spec import require, require_probability


@dataclass(frozen=True)
class LoRASpec(LinearAdapterSpec):
    """W x + scale · up (down x), of which up and down train. Up begins with zeros, so that nothing is changed at first.

    The defaults are the paper's: queries and values. Each kind of rows has a pair of its own.

    Attributes:
        rank: rows of down, columns of up.
        alpha: the scale is alpha / rank.
        dropout: on what enters down.
        rank_stabilised: the scale is alpha / √rank instead (rsLoRA, Kalajdzievski 2023), so that high ranks learn as
            fast as low ones.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, self, "rank", "at least 1")
        require(self.alpha > 0, self, "alpha", "positive")
        require_probability(self, "dropout")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def build(self, linear: nn.Linear, blocks: Sequence[Block]) -> LoRA:
        return LoRA(self, linear, blocks)


class Pair(nn.Module):
    """Two thin matrices, whose product is of low rank."""

    def __init__(self, inputs: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank))

    def reset_parameters(self) -> None:
        """As in the authors' code: down as nn.Linear draws it."""
        bound = 1 / math.sqrt(self.down.shape[1])
        nn.init.uniform_(self.down, -bound, bound)
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor, scale: float) -> Tensor:  # … in -> … out
        return F.linear(F.linear(x, self.down) * scale, self.up)

    def product(self, scale: float) -> Tensor:
        """Out in."""
        return scale * (self.up @ self.down)


class LoRA(Adapter):
    """Adds to some rows of what a linear map makes."""

    spec: LoRASpec

    def __init__(self, spec: LoRASpec, linear: nn.Linear, blocks: Sequence[Block]) -> None:
        super().__init__(spec, blocks)
        self.dropout = Dropout(spec.dropout)
        with linear.weight.device:
            pairs = {b.name: Pair(linear.in_features, spec.rank, b.stop - b.start) for b in blocks}
        self.rows = nn.ModuleDict(pairs)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y, entering = F.linear(x, weight, bias), self.dropout(x)
        return changed(
            y, {b: y[..., b.start : b.stop] + self.rows[b.name](entering, self.spec.scale) for b in self.blocks}
        )

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        summed = {b: weight[b.start : b.stop] + self._product(b) for b in self.blocks}
        return changed(weight, summed, axis=0), bias

    def _product(self, block: Block) -> Tensor:
        pair = self.rows[block.name]
        assert isinstance(pair, Pair), "of its own"
        return pair.product(self.spec.scale)
