"""LAMB."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mmformer.spec import require
from mmformer.training.optimizers.optimizer import OptimizerSpec, require_betas
from mmformer.training.parameter_groups import parameter_groups


@dataclass(frozen=True)
class LAMBSpec(OptimizerSpec):
    """LAMB (You et al. 2019, Algorithm 2), timm's: Adam's step and the decay, scaled to the norm of what they change.

    For batches of thousands. What has no weight decay is moved as by Adam. Sharded parameters count as a whole.

    Attributes:
        betas: of the running means of the gradient and of its square.
        eps: added to the root of the latter.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_betas(self)
        require(self.eps > 0, self, "eps", "positive")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        from timm.optim.lamb import Lamb  # takes seconds to import, which other runs need not wait for

        groups = parameter_groups(self.settings(model))
        # Gradients are clipped by trainer.gradient_clip_val alone. One by one, since norms of shards have to be told.
        return Lamb(groups, lr=self.lr, betas=self.betas, eps=self.eps, max_grad_norm=None, foreach=False)
