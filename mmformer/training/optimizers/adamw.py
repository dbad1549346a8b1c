"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

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
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
