"""Adafactor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mmformer.spec import require
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.parameter_groups import parameter_groups


@dataclass(frozen=True)
class AdafactorSpec(OptimizerSpec):
    """Adafactor (Shazeer and Stern 2018, Algorithm 4) as for vision transformers (Zhai et al. 2021, §3.4), timm's.

    Of a matrix's squared gradients it keeps the means of rows and columns alone. The rate is not scaled to the size of
    the parameter, so that AdamW's serves. Sharded parameters count as a whole.

    Attributes:
        momentum: of a running mean of the steps, kept in bfloat16; None: none, which leaves hardly any state.
        decay: at update t, the squared gradient counts t to minus this in its running mean (§7.2),
        most: but what was there before counts at most this.
        clip: the largest root mean square of a parameter's step, before the rate scales it (§6); None: not clipped.
        least_factored: smaller matrices keep their squared gradients as they are.
    """

    momentum: float | None = 0.9
    decay: float = 0.8
    most: float = 0.999
    clip: float | None = 1.0
    least_factored: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.momentum is None or 0 < self.momentum < 1, self, "momentum", "None, or above 0 and below 1")
        require(0 < self.decay <= 1, self, "decay", "above 0 and at most 1")
        require(0 < self.most < 1, self, "most", "above 0 and below 1")
        require(self.clip is None or self.clip > 0, self, "clip", "None or positive")
        require(self.least_factored >= 2, self, "least_factored", "at least 2")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        from timm.optim.adafactor_bv import (
            AdafactorBigVision,
        )  # takes seconds to import, which other runs need not wait for

        return AdafactorBigVision(
            parameter_groups(self.settings(model)),
            lr=self.lr,
            momentum=self.momentum,
            decay_rate=self.decay,
            beta2_cap=self.most,
            clipping_threshold=self.clip,
            min_dim_size_to_factor=self.least_factored,
        )
