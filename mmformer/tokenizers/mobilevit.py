"""MobileViT's block: between convolutions, the layers of a stack over the places of a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import NormSpec
from mmformer.nn.stack import StackSpec
from mmformer.spec import require
from mmformer.tokenizers.tokenizer import grid_tokens


@dataclass(frozen=True)
class MobileViTBlockSpec:
    """A 3x3 convolution, a projection to the stack's width, the stack, a projection back, and a 3x3 convolution that
    joins what came in and what was made of it (Mehta and Rastegari 2022, MobileViT, §3.1).

    The map is cut into cells, and the stack runs over the places at the top left of all cells, then those beside them,
    and so on: so many times less work than over all places, of which the convolutions let each know the others.

    Attributes:
        stack: over the places; its positions are the cells' rows and columns. What its layers would ask to be
            minimised (routers, halting) nobody would hear of: such a stack is refused.
        cell: side of a cell in places; it must divide the map.
    """

    stack: StackSpec = StackSpec(64, 2, LayerSpec(AttentionSpec(4), GELUFeedForwardSpec(ratio=2.0)))
    cell: int = 2

    def __post_init__(self) -> None:
        require(not self.stack.reads_memory, self, "stack", "one whose layers read no memory (LayerSpec.cross)")
        routed = any(isinstance(layer.feedforward, MixtureOfExpertsSpec) for layer in self.stack.layers)
        silent = self.stack.halting is None and not routed
        require(silent, self, "stack", "one without experts or halting, whose losses a tokenizer cannot hand on")
        self.stack.require_able("MobileViTBlockSpec.stack", ["bidirectional"], "A block over a map")
        require(self.cell >= 1, self, "cell", "at least 1")

    def build(self, channels: int, norm: NormSpec) -> MobileViTBlock:
        """The module from a map of some channels to another one of them; the norm follows each convolution."""
        return MobileViTBlock(self, channels, norm)


class MobileViTBlock(nn.Module):
    def __init__(self, spec: MobileViTBlockSpec, channels: int, norm: NormSpec) -> None:
        super().__init__()
        self.cell, width = spec.cell, spec.stack.width
        self.local = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.local_norm = norm.build(channels)
        self.up = nn.Linear(channels, width, bias=False)
        self.stack = spec.stack.build()
        self.down = nn.Linear(width, channels, bias=False)
        self.down_norm = norm.build(channels)
        self.fusion = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.fusion_norm = norm.build(channels)

    def forward(self, x: Tensor) -> Tensor:
        """B rows columns C -> the same.

        Raises:
            InputError: cells do not divide the map.
        """
        batch, rows, columns, _ = x.shape
        side = self.cell
        if rows % side or columns % side:
            raise InputError(
                f"MobileViTBlockSpec.cell is {side}, which does not divide its map of {rows}x{columns}: hand in "
                f"pictures of another size, or change the cell or the strides before the block."
            )
        y = self.up(F.silu(self.local_norm(_convolved(self.local, x))))
        y = y.view(batch, rows // side, side, columns // side, side, -1)
        y = y.permute(0, 2, 4, 1, 3, 5).reshape(batch * side**2, (rows // side) * (columns // side), -1)
        output = self.stack(grid_tokens(y, rows // side, columns // side))
        assert not output.aux, "its spec was refused with what asks for losses"
        y = output.tokens.x.view(batch, side, side, rows // side, columns // side, -1)
        y = y.permute(0, 3, 1, 4, 2, 5).reshape(batch, rows, columns, -1)
        y = F.silu(self.down_norm(self.down(y)))
        return F.silu(self.fusion_norm(_convolved(self.fusion, torch.cat((x, y.to(x.dtype)), dim=-1))))


def _convolved(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """B rows columns C, which in memory is a map with channels last."""
    y: Tensor = convolution(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)
