"""Sigmoid contrastive learning over pairs of modalities (SigLIP, Zhai et al. 2023, Alg. 1).

Every pair of samples is a question of its own, whether the two belong together, so that no logit depends on another.
They are computed in chunks of rows, and the gradient with them: no logit is needed twice, and none is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.objectives.pairwise import Pairwise, PairwiseSpec, chunks
from mmformer.types import Outputs


@dataclass(frozen=True)
class SigmoidContrastiveSpec(PairwiseSpec):
    """Any two samples of a batch, in two modalities, are told to belong together or not.

    The loss is summed over all pairs and divided by the number of samples, not of pairs. Samples of equal captions are
    positives of each other, each a whole one. The fields are ``PairwiseSpec``'s; the head needs a bias.
    """

    def build(self) -> SigmoidContrastive:
        return SigmoidContrastive(self)

    def check_bias(self, has_bias: bool) -> None:
        if not has_bias:
            raise InputError(
                f"SigmoidContrastiveSpec reads the head '{self.head}', which has no bias: set its bias to -10 (and its "
                f"temperature to 0.1, its lowest_temperature to null, as SigLIP does), or take a ContrastiveSpec."
            )


class SigmoidContrastive(Pairwise):
    def loss(self, x: Tensor, y: Tensor, outputs: Outputs, same: Tensor | None) -> Tensor:
        first = collectives.data_rank() * len(x)
        number = torch.arange(first, first + len(x), device=x.device) if same is None else same
        head, chunk = self.spec.head, self.spec.chunk
        return sigmoid_loss(x, y, outputs.scale[head], outputs.bias[head], number, number, chunk)


def sigmoid_loss(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, rows: Tensor, columns: Tensor, chunk: int = 1024
) -> Tensor:
    """The sigmoid contrastive loss, summed over every row of x with every row of y.

    Over several processes, which hold as many samples each, y is that of all of them: the processes' sums add up to the
    loss of one process. The gradient of y is what all of them say, for a loss that all weigh alike.

    Args:
        x: M E, of unit length, float32.
        y: N E, of unit length, float32.
        scale: (1,), the inverse temperature.
        bias: (1,), added to the scaled similarities.
        rows: M, int64, a number for each row of x.
        columns: N, int64, a number for each row of y: two of equal numbers belong together, any others do not.
        chunk: rows of logits held at once.
    """
    with torch.autocast(x.device.type, enabled=False):
        total: Tensor = _SigmoidLoss.apply(  # type: ignore[no-untyped-call]
            x.float(), y.float(), scale.float(), bias.float(), rows, columns, chunk
        )
    return total


class _SigmoidLoss(torch.autograd.Function):
    """One pass over row chunks, which makes the value and the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, rows: Tensor, columns: Tensor, chunk: int
    ) -> Tensor:
        grad_x, grad_y, grad_scale, grad_bias = (torch.zeros_like(value) for value in (x, y, scale, bias))
        total = x.new_zeros(())
        # Each process's y goes round the ring with its gradient so far, and comes home with all of it.
        for _ in range(collectives.data_world_size()):
            gradients = (grad_x, grad_y, grad_scale, grad_bias)
            total = total + _add_block(x, y, scale, bias, rows, columns, chunk, gradients)
            y, columns, grad_y = collectives.pass_on(y, columns, grad_y)
        ctx.save_for_backward(grad_x, grad_y, grad_scale, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (upper,) = upstream
        return *(upper * gradient for gradient in ctx.saved_tensors), None, None, None


def _add_block(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    rows: Tensor,
    columns: Tensor,
    chunk: int,
    gradients: tuple[Tensor, ...],
) -> Tensor:
    """The loss of a block of pairs; its gradient is added to those of x, y, scale and bias."""
    grad_x, grad_y, grad_scale, grad_bias = gradients
    total = x.new_zeros(())
    for part in chunks(len(x), chunk):
        logits = torch.addmm(bias, scale * x[part], y.T)  # c N
        sign = (rows[part, None] == columns).to(x.dtype).mul_(2).sub_(1)
        margin = logits.mul_(sign)
        total -= F.logsigmoid(margin).sum()
        grad = margin.neg_().sigmoid_().mul_(sign).neg_()  # d loss / d logits
        seen = grad @ y  # c E
        grad_x[part] += scale * seen
        grad_y.addmm_(grad.T, scale * x[part])
        grad_scale += (x[part] * seen).sum()
        grad_bias += grad.sum()
    return total
