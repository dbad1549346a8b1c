"""What updates of both sides have alike: AdamW of the same numbers, and losses that stay equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.parameter_groups import GroupSpec

RATE, DECAY, UPDATES = 1e-5, 0.01, 4


def ours(model: nn.Module, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Our AdamW. All parameters decay, as PyTorch's do."""
    everything = (GroupSpec("*", weight_decay=DECAY),)
    return AdamWSpec(lr=RATE, betas=betas, eps=eps, groups=everything).build(model)


def theirs(model: nn.Module, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """PyTorch's as it comes."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, betas=betas, eps=eps, weight_decay=DECAY)


def apart(ours: Callable[[], float], theirs: Callable[[], float]) -> float:
    """By how much the losses of the first updates differ, at most: later ones are equal if gradients were."""
    pairs = [(ours(), theirs()) for _ in range(UPDATES)]
    return max(abs(a - b) / b for a, b in pairs)
