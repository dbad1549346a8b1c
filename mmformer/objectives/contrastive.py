"""Softmax contrastive learning over pairs of modalities (InfoNCE; CLIP, Radford et al. 2021, §2.3).

The logits of N samples are N², so they are computed in chunks of rows, forward and gradient both: memory grows with
the chunk times N. Chunking alone would save nothing, since autograd keeps every chunk; the gradient is therefore
written out below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.objectives.pairwise import Pairwise, PairwiseSpec, chunks
from mmformer.spec import require_probability
from mmformer.types import Outputs


@dataclass(frozen=True)
class ContrastiveSpec(PairwiseSpec):
    """Each sample's embedding in one modality picks out its own in another, both ways, among the whole batch.

    Samples of equal captions share the target in equal parts.

    Attributes:
        smoothing: share of the target that is spread over the whole batch (Szegedy et al. 2016, §7).
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_probability(self, "smoothing")

    def build(self) -> Contrastive:
        return Contrastive(self)

    def check_bias(self, has_bias: bool) -> None:
        if has_bias:
            raise InputError(
                f"ContrastiveSpec reads the head '{self.head}', which has a bias, but what is added to every logit is "
                f"nothing to a softmax: leave the head's bias out, or take a SigmoidContrastiveSpec."
            )


class Contrastive(Pairwise):
    spec: ContrastiveSpec

    def loss(self, x: Tensor, y: Tensor, outputs: Outputs, same: Tensor | None) -> Tensor:
        return contrastive_loss(x, y, outputs.scale[self.spec.head], same, self.spec.chunk, self.spec.smoothing)


def contrastive_loss(
    x: Tensor, y: Tensor, scale: Tensor, same: Tensor | None = None, chunk: int = 1024, smoothing: float = 0.0
) -> Tensor:
    """The softmax contrastive loss, summed over samples; each sample's is the mean of its two directions.

    Over several processes, which hold as many samples each, every sample is held against those of all of them, and the
    sum is over a process's own: the processes' sums add up to the loss of one process.

    Args:
        x: N E, of unit length, float32.
        y: N E, of unit length, float32; row i belongs to row i of x.
        scale: (1,), the inverse temperature.
        same: N, int64; rows of equal value are positives of each other. None: only row i of row i.
        chunk: rows of logits held at once.
        smoothing: share of each target that is spread over all samples evenly.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y, scale = x.float(), y.float(), scale.float()
        if collectives.data_world_size() == 1:
            total: Tensor = _ContrastiveLoss.apply(x, y, scale, same, chunk, smoothing)  # type: ignore[no-untyped-call]
            return total
        first = collectives.data_rank() * len(x)
        everyone = None if same is None else collectives.gather_rows(same)
        ways = [(x, collectives.gather_rows(y)), (y, collectives.gather_rows(x))]
        rest = (scale, everyone, first, chunk, smoothing)
        losses = [_OneWayLoss.apply(a, b, *rest) for a, b in ways]  # type: ignore[no-untyped-call]
        both: Tensor = (losses[0] + losses[1]) / 2
        return both


class _ContrastiveLoss(torch.autograd.Function):
    """Two passes over row chunks: one for the log-sum-exps of rows and columns, one for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, same: Tensor | None, chunk: int, smoothing: float
    ) -> Tensor:
        number = x.shape[0]
        rows = x.new_empty(number)
        columns = x.new_full((number,), float("-inf"))
        agreement = x.new_zeros(())  # sum over samples of the mean logit of their positives
        for part in chunks(number, chunk):
            logits = scale * (x[part] @ y.T)  # c N
            rows[part] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
            agreement = agreement + (logits * _target(same, part, number, x, smoothing)).sum()
        ctx.save_for_backward(x, y, scale, same, rows, columns)
        ctx.chunk, ctx.smoothing = chunk, smoothing
        return (rows.sum() + columns.sum()) / 2 - agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, y, scale, same, rows, columns = ctx.saved_tensors
        number = x.shape[0]
        grad_x, grad_y, grad_scale = torch.empty_like(x), torch.zeros_like(y), torch.zeros_like(scale)
        for part in chunks(number, ctx.chunk):
            cosine = x[part] @ y.T  # c N
            logits = scale * cosine
            grad = ((logits - rows[part, None]).exp() + (logits - columns).exp()) / 2
            grad = grad - _target(same, part, number, x, ctx.smoothing)  # d loss / d logits
            grad_scale += (grad * cosine).sum()
            grad_x[part] = scale * (grad @ y)
            grad_y += scale * (grad.T @ x[part])
        (upper,) = upstream
        return upper * grad_x, upper * grad_y, upper * grad_scale, None, None, None


def _target(same: Tensor | None, part: slice, number: int, like: Tensor, smoothing: float) -> Tensor:
    """Rows of the target distribution, c N: symmetric, since samples share their positives."""
    target = _own_target(same, part, number, like)
    return target * (1 - smoothing) + smoothing / number if smoothing else target


def _own_target(same: Tensor | None, part: slice, number: int, like: Tensor) -> Tensor:
    if same is None:
        target = like.new_zeros(part.stop - part.start, number)
        target.diagonal(part.start).fill_(1.0)
        return target
    positive = (same[part, None] == same[None, :]).to(like.dtype)
    return positive / positive.sum(1, keepdim=True)


class _OneWayLoss(torch.autograd.Function):
    """Some of the rows against all columns, in one pass over row chunks, which makes the value and the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        same: Tensor | None,
        first: int,
        chunk: int,
        smoothing: float,
    ) -> Tensor:
        grad_x, grad_y, grad_scale = (torch.zeros_like(value) for value in (x, y, scale))
        total = x.new_zeros(())
        for part in chunks(len(x), chunk):
            place = slice(first + part.start, first + part.stop)
            target = _target(same, place, len(y), x, smoothing)
            cosine = x[part] @ y.T  # c N
            logits = scale * cosine
            total += (logits.logsumexp(1) - (logits * target).sum(1)).sum()
            grad = logits.softmax(1) - target  # d loss / d logits
            grad_x[part] = scale * (grad @ y)
            grad_y += scale * (grad.T @ x[part])
            grad_scale += (grad * cosine).sum()
        ctx.save_for_backward(grad_x, grad_y, grad_scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        grad_x, grad_y, grad_scale = ctx.saved_tensors
        (upper,) = upstream
        return upper * grad_x, upper * grad_y, upper * grad_scale, None, None, None, None
