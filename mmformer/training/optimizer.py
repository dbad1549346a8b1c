"""Optimizers, by name, and which parameters decay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mmformer.spec import family, require


@family
@dataclass(frozen=True)
class OptimizerSpec(ABC):
    """How parameters move.

    Attributes:
        lr: the peak learning rate, which the schedule scales.
        weight_decay: of the parameters that decay; see ``decays``.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        require(self.lr > 0, self, "lr", "positive")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over a model's parameters, in two groups: decayed and not."""


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
        require(all(0 <= beta < 1 for beta in self.betas), self, "betas", "at least 0 and below 1 each")
        require(self.eps > 0, self, "eps", "positive")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


def decays(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Every parameter that trains, with its name and whether weight decay applies to it.

    Matrices and convolution kernels decay. What does not: biases and gains (anything of one axis), and what a module
    lists as ``undecayed``: token embeddings, position tables, class tokens and registers, pooling queries,
    temperatures. Pulling those to zero would not make the function simpler, only smaller. A parameter that two modules
    share is told once, under its first name.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                free = parameter.ndim < 2 or name in getattr(module, "undecayed", ())
                yield (f"{prefix}.{name}" if prefix else name), parameter, not free


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The optimizer's groups: decayed, then not; an empty one is left out."""
    listed = list(decays(model))
    groups: list[dict[str, object]] = [
        {"params": [parameter for _, parameter, decay in listed if decay], "weight_decay": weight_decay},
        {"params": [parameter for _, parameter, decay in listed if not decay], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_table(model: nn.Module, weight_decay: float, loaded: Collection[str] = ()) -> str:
    """Every parameter, as tab-separated text with a header: its shape, its size, its weight decay, whether it trains,
    and whether it began with a loaded weight.
    """
    trained = {name: decay for name, _, decay in decays(model)}
    lines = ["parameter\tshape\tsize\tweight_decay\ttrains\tloaded"]
    for name, parameter in model.named_parameters():
        cells = (
            name,
            "x".join(map(str, parameter.shape)),
            parameter.numel(),
            weight_decay if trained.get(name) else 0.0,
            "yes" if name in trained else "no",
            "yes" if name in loaded else "no",
        )
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"
