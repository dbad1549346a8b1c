"""What every optimizer's spec is: a rate, a decay, and which parameters have others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from mmformer.spec import family, require
from mmformer.training.parameter_groups import GroupSpec, Setting, settings


@family
@dataclass(frozen=True)
class OptimizerSpec(ABC):
    """How parameters move.

    Attributes:
        lr: the peak learning rate, which the schedule scales.
        weight_decay: of the parameters that decay; see ``decays``.
        layer_decay: layer-wise decay of the rate (Clark et al. 2020, ELECTRA, §3.1; Bao et al. 2021, BEiT, §2.4): each
            layer of a stack has this share of the rate of the one above it. The highest has the share itself; what
            follows the stack has the whole rate, and tokenizers and positions below it come last. 1: all alike.
        groups: parameters with a rate or a decay of their own.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    layer_decay: float = field(default=1.0, kw_only=True)
    groups: tuple[GroupSpec, ...] = field(default=(), kw_only=True)

    averages: ClassVar[bool] = False
    """Whether what it builds is an ``AveragingOptimizer``."""

    def __post_init__(self) -> None:
        require(self.lr > 0, self, "lr", "positive")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        require(0 < self.layer_decay <= 1, self, "layer_decay", "above 0 and at most 1")

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over a model's parameters, in groups with a "weight_decay" and an "lr_scale" each."""

    def settings(self, model: nn.Module) -> list[Setting]:
        """The rate and the decay of every parameter that trains.

        Raises:
            InputError: a group that no parameter is in.
        """
        return settings(model, self.weight_decay, self.layer_decay, self.groups)


class AveragingOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that trains one point and means another: an average, which is to be measured and kept."""

    @abstractmethod
    def averaged(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model has the averages; after it, its weights again, bit for bit."""


def require_betas(spec: Any) -> None:
    """Refuse shares of running means outside [0, 1)."""
    require(all(0 <= beta < 1 for beta in spec.betas), spec, "betas", "at least 0 and below 1 each")
