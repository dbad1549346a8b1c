"""DoRA: LoRA of the rows' directions, and their lengths by themselves (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.adapters.adapter import Block, changed
from mmformer.adapters.lora import LoRA, LoRASpec


@dataclass(frozen=True)
class DoRASpec(LoRASpec):
    """magnitude · V / ‖V‖ for each row V of W + scale · up down; magnitude, up and down train.

    The magnitude begins as the length of W's row. As in the paper (§4.3), no gradient goes through ‖V‖. A weight cannot
    be dropped out of a length: ``dropout`` is on what enters down alone.
    """

    def build(self, linear: nn.Linear, blocks: Sequence[Block]) -> DoRA:
        return DoRA(self, linear, blocks)


class DoRA(LoRA):
    spec: DoRASpec

    def __init__(self, spec: DoRASpec, linear: nn.Linear, blocks: Sequence[Block]) -> None:
        super().__init__(spec, linear, blocks)
        lengths = {b.name: nn.Parameter(_lengths(linear.weight[b.start : b.stop])) for b in blocks}
        self.magnitude = nn.ParameterDict(lengths)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y, entering = F.linear(x, weight), self.dropout(x)
        made = {}
        for b in self.blocks:
            turned = y[..., b.start : b.stop] + self.rows[b.name](entering, self.spec.scale)
            made[b] = turned * self._ratio(b, weight).to(turned.dtype)
        whole = changed(y, made)
        return whole if bias is None else whole + bias.to(whole.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        made = {}
        for b in self.blocks:
            made[b] = (weight[b.start : b.stop] + self._product(b)) * self._ratio(b, weight)[:, None]
        return changed(weight, made, axis=0), bias

    def _ratio(self, block: Block, weight: Tensor) -> Tensor:
        """Magnitude over length: a row's."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            length = _lengths(weight[block.start : block.stop] + self._product(block))
        ratio: Tensor = self.magnitude[block.name] / length
        return ratio


def _lengths(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows.detach(), dim=1)
    return length
