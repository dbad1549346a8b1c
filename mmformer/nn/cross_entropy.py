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
        held = weight.new_empty(min(chunk, len(x)), len(weight), dtype=wide)  # one chunk's logits, then their gradient
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), chunk):
                part, right = x[start : start + chunk], target[start : start + chunk]
                logits = _product(part, weight.T, held[: len(part)])  # c V
                if bias is not None:
                    logits += bias
                total += _take_softmax(logits, right, smoothing)
                if not (wants_x or wants_weight or wants_bias):
                    continue
                grad = logits.scatter_add_(1, right[:, None], logits.new_full((len(right), 1), smoothing - 1.0))
                if smoothing:
                    grad -= smoothing / len(weight)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(x.dtype)
                if grad_x is not None:
                    torch.mm(grad, weight, out=grad_x[start : start + chunk])
                if grad_weight is not None and wide == x.dtype:
                    grad_weight.addmm_(grad.T, part)
                elif grad_weight is not None:
                    grad_weight += grad.T @ part
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (upper,) = upstream
        kept = torch._C._autograd._get_current_graph_task_keep_graph()  # whether there may be a second such pass
        scaled = torch.mul if kept else Tensor.mul_  # in place where it can be: these may be as large as all the rest
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if grad is None else scaled(grad, upper).to(dtype) for grad, dtype in saved), None, None, None)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Their matrix product, written where it is wanted, in whatever precision that has."""
    return torch.mm(a, b, out=out) if out.dtype == a.dtype else out.copy_(a @ b)


def _take_softmax(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Turn logits, c V, into their softmax in place; returns the cross-entropy, summed."""
    right = logits.gather(1, target[:, None])[:, 0]
    if smoothing:
        right = (1 - smoothing) * right + smoothing * logits.mean(1)
    largest = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    normaliser = largest - logits.amax(1).log()  # the log-sum-exp: the largest probability is exp(largest - it)
    return (normaliser - right).sum()
