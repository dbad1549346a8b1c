"""Schedule-free AdamW: an average of the weights takes the place of a falling rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmformer.parallel.sharding import drop_gathered
from mmformer.spec import require
from mmformer.training.optimizers.optimizer import AveragingOptimizer, OptimizerSpec
from mmformer.training.parameter_groups import parameter_groups


@dataclass(frozen=True)
class ScheduleFreeAdamWSpec(OptimizerSpec):
    """Schedule-free AdamW (Defazio et al. 2024, Algorithm 1). The run's schedule is constant, with a warm-up.

    Gradients are taken at y, between the fast weights z and their average x. While training the parameters are y;
    what is measured and kept is x, which is as good at any update as what a schedule that ends there would give.

    Attributes:
        betas: how near y is to x, and of the running mean of the squared gradient.
        eps: added to the root of the latter.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8

    averages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 0 < self.betas[0] < 1 and 0 <= self.betas[1] < 1
        require(good, self, "betas", "below 1, the first above 0 and the second at least 0")
        require(self.eps > 0, self, "eps", "positive")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return ScheduleFreeAdamW(parameter_groups(self.settings(model)), self)


class ScheduleFreeAdamW(AveragingOptimizer):
    def __init__(self, groups: list[dict[str, Any]], spec: ScheduleFreeAdamWSpec) -> None:
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
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])
        return loss

    def _move(self, y: Tensor, lr: float, weight_decay: float) -> None:
        state, gradient, (near, second) = self.state[y], y.grad, self.spec.betas
        assert gradient is not None
        if not state:
            state |= {
                "step": torch.zeros(()),
                "weights": torch.zeros(()),
                "z": y.clone(),
                "square": torch.zeros_like(y),
            }
        state["step"] += 1
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = lr * math.sqrt(1 - second ** float(state["step"]))
        state["weights"] += rate**2
        share = rate**2 / float(state["weights"]) if rate else 0.0  # of the new z in x
        step = gradient / state["square"].sqrt().add_(self.spec.eps) + weight_decay * y
        # y = (1 - near) z + near x, before and after; x itself is not kept.
        y.sub_(state["z"], alpha=1 - near).mul_(1 - share)
        state["z"].sub_(step, alpha=rate)
        y.add_(state["z"], alpha=1 - near + near * share)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        moved = [p for group in self.param_groups for p in group["params"] if self.state.get(p)]
        drop_gathered(model)
        with torch.no_grad():
            before = [parameter.clone() for parameter in moved]
            for parameter in moved:
                parameter.lerp_(self.state[parameter]["z"], 1 - 1 / self.spec.betas[0])
        try:
            yield
        finally:
            drop_gathered(model)
            with torch.no_grad():
                for parameter, weight in zip(moved, before, strict=True):
                    parameter.copy_(weight)
