"""Samples of different lengths side by side in rows of one length, so that layers do no work on padding."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.types import Tokens


class Packed(NamedTuple):
    """Tokens of several samples a row, and the way back."""

    tokens: Tokens  # rows R …; each sample is a segment
    place: Tensor  # B L, int64: where in the flattened rows each token went; padding went nowhere and says 0
    valid: Tensor  # B L, bool
    row: Tensor  # B, int64: the row of each sample

    def unpack(self, x: Tensor) -> Tensor:
        """Rows R D -> B L D, zero where there is padding."""
        return x.flatten(0, 1)[self.place] * self.valid[..., None]


def pack(tokens: Tokens) -> Packed:
    """Put each sample's real tokens, in their order, into rows as long as the longest sample.

    Args:
        tokens: with ``valid`` and without ``segment``; B L D.
    """
    assert tokens.valid is not None, "there is padding to save"
    lengths = tokens.valid.sum(1)
    row, begin, rows = fill_rows(lengths.tolist(), tokens.valid.shape[1])
    places = torch.tensor([row, begin], device=lengths.device)
    return _laid_out(tokens, tokens.valid, places[0], places[1], rows, int(lengths.max()))


def pack_beside(packed: Packed, tokens: Tokens) -> Packed:
    """Put further tokens of samples that are packed into rows too: a sample's own where the sample is.

    Args:
        packed: B samples.
        tokens: of the same samples, without ``segment``; B M D. They may be as many as they like.
    """
    row, rows = packed.row, len(packed.tokens.x)
    valid = row.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
    lengths, order = valid.sum(1), row.argsort(stable=True)
    ahead = lengths[order].cumsum(0) - lengths[order]  # tokens of samples in earlier rows, or earlier in the same
    begin = torch.empty_like(ahead).index_copy(0, order, ahead)  # B
    totals = row.new_zeros(rows).index_add(0, row, lengths)  # R
    return _laid_out(tokens, valid, row, begin - (totals.cumsum(0) - totals)[row], rows, int(totals.max()))


def _laid_out(tokens: Tokens, valid: Tensor, row: Tensor, begin: Tensor, rows: int, size: int) -> Packed:
    """Put each sample's real tokens into its row of a size, from a place on."""
    assert tokens.segment is None, "there is one segment a row"
    batch, length = valid.shape
    within = valid.cumsum(1) - 1  # B L: the token's place among its sample's real ones
    place = torch.where(valid, (row * size + begin)[:, None] + within, 0)
    source = torch.full((rows * size,), -1, dtype=torch.int64, device=valid.device)
    index = torch.arange(batch * length, device=valid.device).view(batch, length)
    source[place[valid]] = index[valid]
    real, source = (source >= 0).view(-1, size), source.clamp(min=0)
    x = tokens.x.flatten(0, 1)[source].view(-1, size, tokens.x.shape[2])
    pos = tokens.pos.expand(batch, -1, -1).flatten(0, 1)[source].view(-1, size, tokens.pos.shape[2])
    segment = torch.where(real, (source // length).view(-1, size), -1)
    return Packed(Tokens(x, pos, real, segment), place, valid, row)


def fill_rows(lengths: Sequence[int], size: int) -> tuple[list[int], list[int], int]:
    """The row of each length and where it begins there, and how many rows there are: first-fit decreasing.

    Rows are as long as the longest of the lengths. A place is sought in the fullest row that has room.
    """
    size = max(lengths, default=size)
    row, begin = [0] * len(lengths), [0] * len(lengths)
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    rows = 0
    for sample in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        wanted = lengths[sample]
        at = bisect.bisect_left(room, (wanted, -1))
        left, target = room.pop(at) if at < len(room) else (size, rows)
        rows = max(rows, target + 1)
        row[sample], begin[sample] = target, size - left
        bisect.insort(room, (left - wanted, target))
    return row, begin, rows
