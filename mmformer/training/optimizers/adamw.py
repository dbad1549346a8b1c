"""AdamW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmformer.parallel.sharding import by_mesh
from mmformer.spec import require
from mmformer.training.optimizers.optimizer import OptimizerSpec, require_betas
from mmformer.training.parameter_groups import parameter_groups


@dataclass(frozen=True)
class AdamWSpec(OptimizerSpec):
    """AdamW (Loshchilov and Hutter 2017), fused: one kernel for all parameters, several times faster on a CPU too.

    Attributes:
        betas: of the running means of the gradient and of its square.
        eps: added to the root of the latter.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_betas(self)
        require(self.eps > 0, self, "eps", "positive")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(self.settings(model))
        return FusedAdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


class FusedAdamW(torch.optim.AdamW):
    """PyTorch's, one mesh after the other: its kernel takes no parameters together that are spread differently.

    Groups stay as they are, so that an optimizer's state is the same over any number of processes.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [group["params"] for group in self.param_groups]
        parts = [by_mesh(parameters) for parameters in held]
        try:
            for place in range(max(map(len, parts), default=0)):
                for group, own in zip(self.param_groups, parts, strict=True):
                    group["params"] = own[place] if place < len(own) else []
                super().step()
        finally:
            for group, parameters in zip(self.param_groups, held, strict=True):
                group["params"] = parameters
        return loss
