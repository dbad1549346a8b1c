"""Sparse attention through PyTorch's flex attention: one fused kernel that skips the blocks a pattern leaves empty.

Which blocks those are is told by the pattern, not found by asking for every pair. On the CPU flex has no backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmformer.nn.blocked import BLOCK, occupied_blocks
from mmformer.nn.mask import Mask


class FlexPlan(NamedTuple):
    """The blocks of pairs that hold any, and which of their pairs are allowed."""

    blocks: BlockMask
    added: Callable[..., Tensor] | None = None  # to a score, by its row, head, query and key; None: nothing

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        assert not dropout, "flex attention drops no weights; make_plan knows"
        grouped = query.shape[1] != key.shape[1]
        return _kernel(query.device.type)(
            query, key, value, score_mod=self.added, block_mask=self.blocks, enable_gqa=grouped
        )


def flex_plan(mask: Mask, length: int, device: torch.device) -> FlexPlan | None:
    """The plan of a mask with a pattern over a row of a length; None where it is one block."""
    if length <= BLOCK:
        return None
    occupied = occupied_blocks(mask, length, device)[:, None]  # (B or 1) 1 N N
    number = occupied.sum(-1, dtype=torch.int32)
    first = (~occupied).to(torch.uint8).argsort(dim=-1, stable=True).int()  # the occupied ones

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = mask.sees(row, query, key)
        assert allowed is not None, "there is a pattern"
        return allowed

    def added(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        bias = mask.weighs(row, query, key)
        assert bias is not None, "there is one for all pairs"
        return score + bias.to(score.dtype)

    lengths, one = (length, length), torch.zeros((), dtype=torch.int64, device=device)
    blocks = BlockMask.from_kv_blocks(number, first, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=lengths)
    return FlexPlan(blocks, None if mask.weighs(one, one, one) is None else added)


@lru_cache(maxsize=2)
def _kernel(device: str) -> Callable[..., Tensor]:
    """Uncompiled, it would hold all scores."""
    one = cast("Callable[..., Tensor]", flex_attention)  # what is returned depends on what is asked
    return torch.compile(one) if device == "cuda" else one
