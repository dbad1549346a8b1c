"""Sparse attention that computes only the blocks of pairs that a pattern may allow.

Blocks of queries gather the blocks of keys that they may see, and attend to those: time and memory grow with what is
seen, not with the square of the length. Blocks of queries that may see most keys, global tokens among them, attend to
the whole row instead. The result is that of the dense mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask, masked
from mmformer.nn.pattern import PatternSpec, added, span

BLOCK = 128
"""Tokens of a block: small blocks follow a window closely, large ones make large matrix products."""

LEAST = 4 * BLOCK
"""The shortest row that is cut into blocks."""

WORTH = 0.5
"""The largest share of the keys that a block of queries gathers; where it sees more, it attends to the whole row."""


Bias = Callable[[Tensor, Tensor], Tensor | None]
"""B Q A, B K A -> (B or 1) (H or 1) Q K: what is added to scores, of where queries and keys stand; None: nothing."""


class BlockedPlan(NamedTuple):
    """What is computed. A row's N blocks of queries are narrow (n of them) or wide."""

    query: Tensor  # n BLOCK, int64: the indexes of the narrow blocks' tokens; past the row's end, its last
    key: Tensor  # n (m BLOCK), int64: of the keys that each of them gathers
    allowed: Tensor  # (B or 1) n BLOCK (m BLOCK), bool: the pairs that the mask allows, each key counted once
    narrow: Tensor  # tokens of narrow blocks, int64, in order
    wide: Tensor  # W, int64: the other tokens
    wide_allowed: Tensor  # (B or 1) W L, bool: what they see
    bias: Tensor | None = None  # (B or 1) n (H or 1) BLOCK (m BLOCK): on the scores of the narrow blocks
    wide_bias: Tensor | None = None  # (B or 1) (H or 1) W L: on those of the others

    def biased(self, bias: Bias, pos: Tensor) -> BlockedPlan:
        """With what is added to the scores of the pairs that are computed, and made for no others.

        Args:
            bias: makes it of where queries and keys stand.
            pos: (B or 1) L A.
        """
        query, key = (pos[:, index].flatten(0, 1) for index in (self.query, self.key))  # (B n) tokens A
        narrow, wide = bias(query, key), bias(pos[:, self.wide], pos) if len(self.wide) else None
        if narrow is not None:
            narrow = narrow.view(len(pos), -1, *narrow.shape[1:])
        return self._replace(bias=added(self.bias, narrow), wide_bias=added(self.wide_bias, wide))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        y = _attend_narrow(query, key, value, self, dropout)[:, :, : len(self.narrow)]
        if not len(self.wide):
            return y
        bias = None if self.wide_bias is None else self.wide_bias.to(query.dtype)
        mask = masked(self.wide_allowed[:, None], bias)
        wide = attend(query[:, :, self.wide], key, value, mask, False, dropout)
        back = torch.cat((self.narrow, self.wide)).argsort()
        return torch.cat((y, wide), dim=2)[:, :, back]


def blocked_plan(mask: Mask, length: int, device: torch.device) -> BlockedPlan | None:
    """The plan of a mask with a pattern over a row of a length; None where blocks would save nothing.

    It has the pattern's own bias; ``biased`` adds a position's.
    """
    assert mask.pattern is not None
    if length < LEAST:
        return None
    bare = mask.valid is None and mask.key_segment is None and mask.prefix is None and mask.order is None
    if bare and not mask.pattern.over_coordinates:
        return _shared_plan(mask.pattern, mask.causal, length, device)
    return _plan(mask, length, device)


def occupied_blocks(mask: Mask, length: int, device: torch.device) -> Tensor:
    """(B or 1) N N, bool: False where a mask with a pattern allows no pair between two blocks."""
    assert mask.pattern is not None
    rows = next((len(part) for part in (mask.order, mask.pos) if part is not None), 1)
    row = torch.arange(rows, device=device)[:, None]
    places = mask.places(row, torch.arange(length, device=device)[None])
    occupied = mask.pattern.occupied(places, places, BLOCK)
    if mask.key_segment is not None:
        segments = span(mask.key_segment, BLOCK)
        occupied = occupied & segments.meets(segments)
    return occupied.tril() if mask.causal and mask.prefix is None else occupied


def _attend_narrow(query: Tensor, key: Tensor, value: Tensor, plan: BlockedPlan, dropout: float) -> Tensor:
    """B H (n BLOCK) width: the narrow blocks of queries, one after the other."""
    batch, blocks = len(query), len(plan.query)
    bias = None if plan.bias is None else plan.bias.to(query.dtype)
    mask = masked(plan.allowed[:, :, None], bias)  # (B or 1) n (H or 1) BLOCK (m BLOCK)
    mask = mask.expand(batch, -1, -1, -1, -1).flatten(0, 1)

    def gathered(x: Tensor, index: Tensor) -> Tensor:  # B h L width -> (B n) h tokens width
        return x[:, :, index].transpose(1, 2).flatten(0, 1)

    y = attend(gathered(query, plan.query), gathered(key, plan.key), gathered(value, plan.key), mask, False, dropout)
    return y.view(batch, blocks, *y.shape[1:]).transpose(1, 2).flatten(2, 3)


@lru_cache(maxsize=16)
def _shared_plan(pattern: PatternSpec, causal: bool, length: int, device: torch.device) -> BlockedPlan | None:
    """A plan that depends on no batch: every pass of this length shares it."""
    total = torch.full((1, length), length, device=device) if pattern.over_lengths else None
    return _plan(Mask(causal, pattern=pattern, total=total), length, device)


def _plan(mask: Mask, length: int, device: torch.device) -> BlockedPlan | None:
    occupied = occupied_blocks(mask, length, device).any(0)  # N N, in any sample
    number = len(occupied)
    is_wide = occupied.sum(1) > max(WORTH * number, 1)
    if is_wide.double().mean() > WORTH:
        return None
    narrow = torch.nonzero(~is_wide).flatten()  # n
    most = int(occupied[narrow].sum(1).max())
    chosen = (~occupied[narrow]).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # n m: the occupied first
    real = occupied[narrow].gather(1, chosen)
    within = torch.arange(BLOCK, device=device)
    query, key = (blocks[..., None] * BLOCK + within for blocks in (narrow, chosen))  # n BLOCK, n m BLOCK
    counted = (real[..., None] & (key < length)).flatten(1)  # n (m BLOCK)
    query, key = query.clamp(max=length - 1), key.flatten(1).clamp(max=length - 1)
    tokens = torch.arange(length, device=device)
    in_wide = is_wide.repeat_interleave(BLOCK)[:length]
    wide = tokens[in_wide]
    allowed, wide_allowed = mask.allowed(query, key), mask.allowed(wide, tokens)
    assert allowed is not None and wide_allowed is not None
    bias, wide_bias = mask.bias(query, key), mask.bias(wide, tokens)
    return BlockedPlan(
        query,
        key,
        allowed & counted[None, :, None, :],
        tokens[~in_wide],
        wide,
        wide_allowed,
        None if bias is None else bias[:, :, None],
        None if wide_bias is None or not len(wide) else wide_bias[:, None],
    )
