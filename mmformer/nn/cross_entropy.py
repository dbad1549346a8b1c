"""Cross-entropy over a vocabulary, without all of its logits at once.

The logits of T tokens over V pieces are T × V numbers, more than all else that a small decoder holds. They are made in
chunks of tokens, and each chunk's gradient is taken while its logits are there, so that nothing of that size is kept or
computed twice (the idea of Liger Kernel, Hsu et al. 2024, §3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, chunk: int = 1024, smoothing: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """The cross-entropy of ``x @ weight.T + bias`` with a target, summed over tokens; scalar, float32 or wider.

    Args:
        x: T D.
        weight: V D.
        target: T, int64, below V.
        chunk: tokens whose logits are held at once.
        smoothing: share of the target that is spread over all V evenly.
        bias: V; None: none.
    """
    wanted = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if wanted else x.dtype
    if not torch.is_grad_enabled():  # a Function is told what its inputs want, not whether anyone will ask
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x.to(dtype), weight.to(dtype), bias, target, chunk, smoothing
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """The products are in the inputs' precision, the softmax and the sums over chunks in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int, smoothing: float
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros((), dtype=wide)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=wide) if wants_bias else None
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), chunk):
                part, right = x[start : start + chunk], target[start : start + chunk]
                logits = (part @ weight.T).to(wide)  # c V
                logits = logits if bias is None else logits + bias
                total += F.cross_entropy(logits, right, reduction="sum", label_smoothing=smoothing)
                if not (wants_x or wants_weight or wants_bias):
                    continue
                grad = logits.softmax(-1)
                grad.scatter_add_(1, right[:, None], grad.new_full((len(right), 1), smoothing - 1.0))
                if smoothing:
                    grad -= smoothing / len(weight)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(x.dtype)
                if grad_x is not None:
                    grad_x[start : start + chunk] = grad @ weight
                if grad_weight is not None:
                    grad_weight += grad.T @ part
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (upper,) = upstream
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if grad is None else (upper * grad).to(dtype) for grad, dtype in saved), None, None, None)
