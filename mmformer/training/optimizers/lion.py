"""Lion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mmformer.training.optimizers.optimizer import OptimizerSpec, require_betas
from mmformer.training.parameter_groups import parameter_groups


@dataclass(frozen=True)
class LionSpec(OptimizerSpec):
    """Lion (Chen et al. 2023, Algorithm 2), timm's: every weight moves by the learning rate, as a sign says.

    Its state is half of AdamW's. Where AdamW is good at a rate and a decay, a third to a tenth of the rate is, with as
    many times the decay (§5).

    Attributes:
        betas: of the mean whose sign is taken, and of the mean that is kept.
    """

    lr: float = 1e-4
    weight_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_betas(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        from timm.optim.lion import Lion  # takes seconds to import, which other runs need not wait for

        return Lion(parameter_groups(self.settings(model)), lr=self.lr, betas=self.betas)
