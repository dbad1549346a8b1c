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
from torch.nn import functional as F

from mmformer.errors import InputError, nearest
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.spec import Parts, require
from mmformer.types import Batch, LossTerm, Outputs, Text


@dataclass(frozen=True)
class ContrastiveSpec(ObjectiveSpec):
    """Each sample's embedding in one modality picks out its own in another, both ways, among the whole batch.

    Attributes:
        pairs: encoders that are held against each other.
        head: the model's contrastive head, which owns the temperature.
        same_caption_positive: samples whose captions are equal count as each other's positives, in equal shares,
            instead of being pushed apart. Captions are compared as the model reads them, after they are cut to the
            context length. In a batch without text, each sample is its own positive alone.
        chunk: rows of logits held at once.
    """

    pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
    head: str = "contrastive"
    same_caption_positive: bool = True
    chunk: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.pairs) >= 1, self, "pairs", "at least one pair of encoders")
        distinct = all(a != b for a, b in self.pairs) and len({frozenset(p) for p in self.pairs}) == len(self.pairs)
        require(distinct, self, "pairs", "different pairs of two different encoders")
        require(self.chunk >= 1, self, "chunk", "at least 1")

    def build(self) -> Contrastive:
        return Contrastive(self)

    def check(self, parts: Parts) -> None:
        if not hasattr(parts.heads.get(self.head), "temperature"):
            raise InputError(
                f"A contrastive objective reads the head '{self.head}', but the model's heads are "
                f"{', '.join(parts.heads) or 'none'}: add a ContrastiveHeadSpec of that name."
                f"{nearest(self.head, parts.heads)}"
            )
        for pair in self.pairs:
            for name in pair:
                if name not in parts.embedding_widths:
                    raise InputError(
                        f"ContrastiveSpec.pairs has '{name}', but the model's encoders are "
                        f"{', '.join(parts.embedding_widths)}.{nearest(name, parts.embedding_widths)}"
                    )
            first, second = (parts.embedding_widths[name] for name in pair)
            if first != second:
                raise InputError(
                    f"ContrastiveSpec.pairs holds '{pair[0]}' against '{pair[1]}', but their embeddings are {first} "
                    f"and {second} wide: give both encoders the same embedding."
                )


class Contrastive(Objective):
    couples_samples = True

    def __init__(self, spec: ContrastiveSpec) -> None:
        self.spec = spec

    def items(self, batch: Batch) -> dict[str, Tensor]:
        number = torch.tensor(float(len(batch.keys)))
        return {f"{a}_{b}": number for a, b in self.spec.pairs}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        same = caption_identity(batch.text) if self.spec.same_caption_positive and batch.text is not None else None
        terms: dict[str, LossTerm] = {}
        for a, b in self.spec.pairs:
            if a not in outputs.embedding or b not in outputs.embedding:
                missing = a if a not in outputs.embedding else b
                raise InputError(f"A contrastive objective reads '{missing}', but the batch has no such modality.")
            x, y = (F.normalize(outputs.embedding[name].float(), dim=-1) for name in (a, b))
            total = contrastive_loss(x, y, outputs.scale[self.spec.head], same, self.spec.chunk)
            terms[f"{a}_{b}"] = LossTerm(total, total.new_tensor(float(x.shape[0])))
        return terms


def contrastive_loss(x: Tensor, y: Tensor, scale: Tensor, same: Tensor | None = None, chunk: int = 1024) -> Tensor:
    """The softmax contrastive loss, summed over samples; each sample's is the mean of its two directions.

    Args:
        x: N E, of unit length, float32.
        y: N E, of unit length, float32; row i belongs to row i of x.
        scale: (1,), the inverse temperature.
        same: N, int64; rows of equal value are positives of each other. None: only row i of row i.
        chunk: rows of logits held at once.
    """
    with torch.autocast(x.device.type, enabled=False):
        total: Tensor = _ContrastiveLoss.apply(  # type: ignore[no-untyped-call]
            x.float(), y.float(), scale.float(), same, chunk
        )
    return total


def caption_identity(text: Text) -> Tensor:
    """A number for every caption, equal where the captions are equal: B, int64.

    Captions are their ids, as the model reads them: two that differ only past the context length are equal. The number
    is a hash, a sum of ids times fixed odd 64-bit factors that depend on the place, so that comparing N captions needs
    no sorting on the device. Captions that differ in one place never agree; others agree by chance, which is about
    2^-64 a pair if the factors are as good as random. Whoever knows them can make captions that do.
    """
    place = torch.arange(1, text.ids.shape[1] + 1, device=text.ids.device)
    factor = place * -7046029254386353131  # the golden ratio in 64 bits, as in SplitMix64's increment
    factor = (factor ^ (factor >> 30)) * -4658895280553007687
    factor = ((factor ^ (factor >> 27)) * -7723592293110705685) | 1
    real = place <= text.lengths[:, None]
    return (text.ids * factor * real).sum(1)


class _ContrastiveLoss(torch.autograd.Function):
    """Two passes over row chunks: one for the log-sum-exps of rows and columns, one for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, same: Tensor | None, chunk: int) -> Tensor:
        number = x.shape[0]
        rows = x.new_empty(number)
        columns = x.new_full((number,), float("-inf"))
        agreement = x.new_zeros(())  # sum over samples of the mean logit of their positives
        for part in _chunks(number, chunk):
            logits = scale * (x[part] @ y.T)  # c N
            rows[part] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
            agreement = agreement + (logits * _target(same, part, number, x)).sum()
        ctx.save_for_backward(x, y, scale, same, rows, columns)
        ctx.chunk = chunk
        return (rows.sum() + columns.sum()) / 2 - agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, y, scale, same, rows, columns = ctx.saved_tensors
        number = x.shape[0]
        grad_x, grad_y, grad_scale = torch.empty_like(x), torch.zeros_like(y), torch.zeros_like(scale)
        for part in _chunks(number, ctx.chunk):
            cosine = x[part] @ y.T  # c N
            logits = scale * cosine
            grad = ((logits - rows[part, None]).exp() + (logits - columns).exp()) / 2
            grad = grad - _target(same, part, number, x)  # d loss / d logits
            grad_scale += (grad * cosine).sum()
            grad_x[part] = scale * (grad @ y)
            grad_y += scale * (grad.T @ x[part])
        (upper,) = upstream
        return upper * grad_x, upper * grad_y, upper * grad_scale, None, None


def _chunks(number: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, number)) for start in range(0, number, chunk)]


def _target(same: Tensor | None, part: slice, number: int, like: Tensor) -> Tensor:
    """Rows of the target distribution, c N: symmetric, since samples share their positives."""
    if same is None:
        target = like.new_zeros(part.stop - part.start, number)
        target.diagonal(part.start).fill_(1.0)
        return target
    positive = (same[part, None] == same[None, :]).to(like.dtype)
    return positive / positive.sum(1, keepdim=True)
