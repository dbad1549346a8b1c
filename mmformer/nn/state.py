"""What decoding carries from call to call, and the description of the tokens that it holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.nn.layer import LayerState
from mmformer.types import Tokens


class StackState(NamedTuple):
    """The states of a stack's layers, one for each application of a layer, and which tokens they hold."""

    layers: tuple[LayerState, ...]
    pos: Tensor | None = None  # B L A
    valid: Tensor | None = None  # B L
    segment: Tensor | None = None  # B L
    prefix: Tensor | None = None  # B: of the first call, whose tokens must hold it
    media: Tensor | None = None  # B: what the last token sees of a memory in parts
    at: Tensor | None = None  # 1, int64: the next token's place, where there are places already (``KeyValue.fixed``)


def described(past: StackState, tokens: Tokens) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """pos, valid and segment of all keys: those in the state, then the new tokens."""
    if past.pos is None:
        return tokens.pos, tokens.valid, tokens.segment
    if past.at is not None:
        assert past.valid is not None and past.segment is None, "places that nothing stands in are hidden by valid"
        return past.pos.index_copy_(1, past.at, tokens.pos), past.valid.index_fill_(1, past.at, True), None
    pos = torch.cat((past.pos, tokens.pos), dim=1)
    valid = None
    if past.valid is not None or tokens.valid is not None:
        new = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
        old = new.new_ones(past.pos.shape[:2]) if past.valid is None else past.valid
        valid = torch.cat((old, new), dim=1)
    if (past.segment is None) != (tokens.segment is None):
        raise InputError("Either all calls that go on from one another have segments, or none has.")
    segment = None
    if past.segment is not None and tokens.segment is not None:
        segment = torch.cat((past.segment, tokens.segment), dim=1)
    return pos, valid, segment


def counted(valid: Tensor | None, segment: Tensor | None) -> Tensor | None:
    """How many real tokens of its segment stand before each token: B L; None: as many as stand before it."""
    if segment is None:
        return None if valid is None else valid.long().cumsum(1) - valid.long()
    # Sorted by segment, places are counted along each; then everything goes back to where it was.
    real = torch.ones_like(segment) if valid is None else valid.long()
    by_segment = segment.argsort(dim=1, stable=True)
    before = real.gather(1, by_segment).cumsum(1) - real.gather(1, by_segment)
    ordered = segment.gather(1, by_segment)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = before.masked_fill(~begins, -1).cummax(1).values
    return torch.empty_like(before).scatter_(1, by_segment, before - start)


def totals(valid: Tensor | None, segment: Tensor | None, length: int, device: torch.device) -> Tensor:
    """How many real tokens the segment of each token has: (B or 1) L."""
    before = counted(valid, segment)
    if before is None:
        return torch.full((1, length), length, device=device)
    after = counted(*(None if part is None else part.flip(1) for part in (valid, segment)))
    assert after is not None
    return before + after.flip(1) + (1 if valid is None else valid.long())
