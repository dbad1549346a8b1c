"""Some of each sample's tokens, those that a stack is to see: drawn, or said (FLIP, Li et al. 2023, §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmformer.types import Tokens


def drawn(tokens: Tokens, share: float) -> Tokens:
    """A share of each sample's real tokens, rounded, one at least: drawn evenly, and in their order."""
    batch, length = tokens.x.shape[:2]
    score = torch.rand(batch, length, device=tokens.x.device)
    if tokens.valid is not None:
        score = score.masked_fill(~tokens.valid, 2.0)  # after all real ones
    keep = score.argsort(1)[:, : max(1, round(length * share))]  # B K
    valid = None
    if tokens.valid is not None:
        number = (tokens.valid.sum(1, keepdim=True) * share).round().clamp(min=1)
        valid = tokens.valid.gather(1, keep) & (torch.arange(keep.shape[1], device=keep.device) < number)
        keep = keep.where(valid, length)  # what is dropped stands last
    keep = keep.sort(1).values
    if valid is not None:
        valid, keep = keep < length, keep.clamp(max=length - 1)
    return chosen(tokens, keep)._replace(valid=valid)


def chosen(tokens: Tokens, keep: Tensor) -> Tokens:
    """Each row's tokens of these numbers, B K, in their order."""
    x, pos = (value.gather(1, keep[..., None].expand(-1, -1, value.shape[2])) for value in tokens[:2])
    return Tokens(x, pos, None if tokens.valid is None else tokens.valid.gather(1, keep))
