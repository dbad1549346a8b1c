"""Softmax contrastive learning over pairs of modalities (InfoNCE; CLIP, Radford et al. 2021, §2.3).

The logits of N samples are N², so they are computed in chunks of rows, forward and gradient both: memory grows with
the chunk times N. Chunking alone would save nothing, since autograd keeps every chunk; the gradient is therefore
written out below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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
        agreement = x.new_zeros(())
        for part in chunks(number, chunk):
            # Scaled after the product: rows against columns are then columns against rows to the bit.
            logits = (x[part] @ y.T).mul_(scale)  # c N
            rows[part] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
            agreement += _Target(same, part, smoothing).agreement(logits)
        ctx.save_for_backward(x, y, scale, same, rows, columns)
        ctx.chunk, ctx.smoothing = chunk, smoothing
        return (rows.sum() + columns.sum()) / 2 - agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, y, scale, same, rows, columns = ctx.saved_tensors
        gradients = _Gradients.zeros(x, y, scale)
        for part in chunks(len(x), ctx.chunk):
            logits = (x[part] @ y.T).mul_(scale)  # c N
            grad = (logits - rows[part, None]).exp_()
            grad.add_(logits.sub_(columns).exp_()).mul_(0.5)
            _Target(same, part, ctx.smoothing).subtract_from(grad)
            gradients.add(grad, part, x, y, scale)
        (upper,) = upstream
        return upper * gradients.x, upper * gradients.y, upper * gradients.scale, None, None, None


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
        gradients = _Gradients.zeros(x, y, scale)
        total = x.new_zeros(())
        for part in chunks(len(x), chunk):
            target = _Target(same, slice(first + part.start, first + part.stop), smoothing)
            logits = (x[part] @ y.T).mul_(scale)  # c N
            rows = logits.logsumexp(1, keepdim=True)
            total += rows.sum() - target.agreement(logits)
            grad = logits.sub_(rows).exp_()
            target.subtract_from(grad)
            gradients.add(grad, part, x, y, scale)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        grad_x, grad_y, grad_scale = ctx.saved_tensors
        (upper,) = upstream
        return upper * grad_x, upper * grad_y, upper * grad_scale, None, None, None, None


class _Gradients(NamedTuple):
    """Of the embeddings of rows and of columns, and of the scale."""

    x: Tensor
    y: Tensor
    scale: Tensor

    @classmethod
    def zeros(cls, *like: Tensor) -> _Gradients:
        return cls(*map(torch.zeros_like, like))

    def add(self, grad: Tensor, part: slice, x: Tensor, y: Tensor, scale: Tensor) -> None:
        """Add those that a chunk of logits' own, c N, makes."""
        seen = grad @ y  # c E
        self.x[part] = scale * seen
        self.y.addmm_(grad.T, scale * x[part])
        self.scale.add_((x[part] * seen).sum())


class _Target(NamedTuple):
    """Rows of the target distribution, c N: symmetric, since samples share their positives."""

    same: Tensor | None
    part: slice
    smoothing: float

    def agreement(self, logits: Tensor) -> Tensor:
        """The sum over rows of their mean logit under the target."""
        own = (logits.diagonal(self.part.start) if self.same is None else logits * self._shared(logits)).sum()
        return (1 - self.smoothing) * own + self.smoothing * logits.mean(1).sum() if self.smoothing else own

    def subtract_from(self, grad: Tensor) -> None:
        """Make of probabilities, in place, the gradient of the cross-entropy with respect to the logits."""
        if self.same is None:
            grad.diagonal(self.part.start).sub_(1 - self.smoothing)
        else:
            grad.sub_(self._shared(grad), alpha=1 - self.smoothing)
        if self.smoothing:
            grad.sub_(self.smoothing / grad.shape[1])

    def _shared(self, like: Tensor) -> Tensor:
        assert self.same is not None
        positive = (self.same[self.part, None] == self.same[None, :]).to(like.dtype)  # c N
        return positive / positive.sum(1, keepdim=True)
