"""Muon, and AdamW for what is no matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmformer.parallel.sharding import sharded_as, whole
from mmformer.spec import require
from mmformer.training.optimizers.optimizer import OptimizerSpec, require_betas
from mmformer.training.parameter_groups import Setting, listed_by, parameter_groups


@dataclass(frozen=True)
class MuonSpec(OptimizerSpec):
    """Muon (Jordan et al. 2024): matrices move by their momentum, made orthogonal. AdamW moves all that does not decay.

    A matrix's step has the size of AdamW's (Liu et al. 2025, §2.2), so that AdamW's rate and decay serve for both. A
    convolution kernel is a matrix with a row for each channel that it makes; what a module lists as ``stacked`` (the
    weights of experts) is as many matrices as it has first indexes.

    It is written out here, since orthogonality is a whole matrix's: a sharded one is gathered for it, in every process.
    It is done in float32, which gives one process's result in any number of them.

    Attributes:
        momentum: the share of the running mean of gradients that stays; the step looks one update ahead (Nesterov).
        iterations: of Newton and Schulz's method, which makes it orthogonal.
        betas: AdamW's.
        eps: AdamW's.
    """

    momentum: float = 0.95
    iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, self, "momentum", "at least 0 and below 1")
        require(self.iterations >= 1, self, "iterations", "at least 1")
        require_betas(self)
        require(self.eps > 0, self, "eps", "positive")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        listed = self.settings(model)
        stacks, groups = listed_by(model, "stacked"), []
        for kind in ("matrix", "stack", "rest"):
            own = [each for each in listed if kind == _kind(each, stacks)]
            groups += [group | {"kind": kind} for group in parameter_groups(own)]
        return Muon(groups, self)


def _kind(setting: Setting, stacks: Collection[str]) -> str:
    if not setting.decays:
        return "rest"
    return "stack" if setting.name in stacks else "matrix"


class Muon(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], spec: MuonSpec) -> None:
        self.spec = spec
        super().__init__(groups, {"lr": spec.lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if group["kind"] == "rest":
                    self._adam(parameter, group["lr"])
                else:
                    self._turn(parameter, group["lr"], group["kind"] == "stack")
        return loss

    def _turn(self, parameter: Tensor, lr: float, stack: bool) -> None:
        state, gradient, share = self.state[parameter], parameter.grad, self.spec.momentum
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - share)
        ahead = whole(gradient.lerp(state["momentum"], share))
        ahead = ahead if stack else ahead.flatten(1)  # … rows columns
        step = orthogonal(ahead, self.spec.iterations) * (0.2 * math.sqrt(max(ahead.shape[-2:])))
        parameter.sub_(sharded_as(step.view(parameter.shape), parameter), alpha=lr)

    def _adam(self, parameter: Tensor, lr: float) -> None:
        state, gradient, (first, second) = self.state[parameter], parameter.grad, self.spec.betas
        assert gradient is not None
        if not state:
            state |= {
                "step": torch.zeros(()),
                "mean": torch.zeros_like(parameter),
                "square": torch.zeros_like(parameter),
            }
        state["step"] += 1
        step = float(state["step"])
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (state["square"] / (1 - second**step)).sqrt().add_(self.spec.eps)
        parameter.addcdiv_(state["mean"], root, value=-lr / (1 - first**step))


def orthogonal(x: Tensor, iterations: int) -> Tensor:
    """About the nearest matrix whose singular values are all 1, by a quintic Newton-Schulz iteration.

    After five, they are between 0.7 and 1.2 (Jordan et al. 2024): it is made to be fast at small ones.

    Args:
        x: … rows columns; each matrix by itself.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    wide = x.float().mT if tall else x.float()
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    turned: Tensor = wide.mT if tall else wide
    return turned
