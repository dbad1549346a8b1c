"""Averages of the weights over the updates: what is measured and kept, in place of the weights that still move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmformer.parallel.sharding import by_mesh, drop_gathered
from mmformer.spec import require


@dataclass(frozen=True)
class EMASpec:
    """An exponential moving average of the parameters that train, in float32, taken after every update.

    Training itself does not see it. Evaluation while training, ``best/`` and the final bundle have the averages.

    Attributes:
        decay: the share of the average that stays at an update; about 1 / (1 - decay) updates are averaged.
        warmup: at update n, a share of at most (1 + n) / (10 + n) stays, so that a short run forgets its first weights
            too (as in TensorFlow's ExponentialMovingAverage).
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        require(0 < self.decay < 1, self, "decay", "above 0 and below 1")

    def decay_at(self, update: int) -> float:
        """The share that stays at an update, 1 the first: a function of it, so that there is no count to resume."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    def build(self, model: nn.Module) -> WeightAverage:
        return WeightAverage(self, model)


class WeightAverage(nn.Module):
    """The averages, as buffers: they are saved, sharded and moved as the parameters are.

    Everything here is elementwise, so that it works on the shards of a parameter as on the whole.
    """

    def __init__(self, spec: EMASpec, model: nn.Module) -> None:
        """Begins with the model's weights, where and as sharded as they are."""
        super().__init__()
        self.spec = spec
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_buffer(_key(name), parameter.detach().float().clone())

    @torch.no_grad()
    def update(self, model: nn.Module, update: int) -> None:
        """Take in the weights that an update, 1 the first, ended with."""
        parameters, averages = zip(*self._pairs(model), strict=True)
        # An average is spread as its parameter is, so that both fall into the same groups.
        for own, current in zip(by_mesh(averages), by_mesh(parameters), strict=True):
            torch._foreach_lerp_(own, [p.float() for p in current], 1 - self.spec.decay_at(update))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averages, and this has the model's weights: neither is copied as a whole."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        drop_gathered(model)
        for parameter, average in self._pairs(model):
            weight = parameter.clone()
            parameter.copy_(average)
            average.copy_(weight)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Every parameter that trains, with its average."""
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        return [(parameter, self.get_buffer(_key(name))) for name, parameter in trained]


def _key(name: str) -> str:
    """A parameter's name as that of a buffer, which may have no dots."""
    return name.replace(".", "/")
