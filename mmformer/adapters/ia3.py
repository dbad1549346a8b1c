"""(IA)³: what a linear map makes, or reads, is scaled, feature by feature (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.adapters.adapter import Adapter, Block, LinearAdapterSpec, changed
from mmformer.nn.initialisation import Role
from mmformer.spec import require


@dataclass(frozen=True)
class IA3Spec(LinearAdapterSpec):
    """A learned factor, at first 1, on each feature.

    The paper (§3.3) scales keys, values and the hidden units of feed-forwards: this spec's defaults, and another one
    with ``{modules: ["stacks.*.down"], rows: null, scales: inputs}``.

    Attributes:
        scales: what a map makes (``outputs``), or what it reads (``inputs``).
    """

    rows: tuple[Role, ...] | None = ("key", "value")
    scales: Literal["outputs", "inputs"] = "outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scales in ("outputs", "inputs"), self, "scales", "'outputs' or 'inputs'")
        whole = self.scales == "outputs" or self.rows is None
        require(whole, self, "rows", "None where inputs are scaled, which all rows read")

    def build(self, linear: nn.Linear, blocks: Sequence[Block]) -> IA3:
        return IA3(self, linear, blocks)


class IA3(Adapter):
    spec: IA3Spec

    def __init__(self, spec: IA3Spec, linear: nn.Linear, blocks: Sequence[Block]) -> None:
        super().__init__(spec, blocks)
        inputs, device = spec.scales == "inputs", linear.weight.device
        sizes = {b.name: linear.in_features if inputs else b.stop - b.start for b in blocks}
        ones = {name: nn.Parameter(torch.ones(size, device=device)) for name, size in sizes.items()}
        self.factor = nn.ParameterDict(ones)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.spec.scales == "inputs":
            return F.linear(x * self.factor["all"].to(x.dtype), weight, bias)
        y = F.linear(x, weight, bias)
        return self._scaled(y)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.spec.scales == "inputs":
            return weight * self.factor["all"], bias
        return self._scaled(weight.T).T.contiguous(), None if bias is None else self._scaled(bias)

    def _scaled(self, y: Tensor) -> Tensor:  # … out
        parts = {b: y[..., b.start : b.stop] * self.factor[b.name].to(y.dtype) for b in self.blocks}
        return changed(y, parts)
