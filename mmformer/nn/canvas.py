"""Tokens laid out where they stand, so that a convolution finds the neighbours of each beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn.mask import Mask
from mmformer.types import AXES, is_special


class Canvas(NamedTuple):
    """S grids of R rows and C columns for each row of a batch: one for each group of tokens that belong together.

    A token that is the only one of its group stands on none of them.
    """

    source: Tensor  # (B or 1) (S R C), int64: the token that stands at each place; L where there is none
    place: Tensor  # (B or 1) L, int64: where each token stands; S R C where it stands nowhere
    size: tuple[int, int, int]  # S, R, C
    alone: Tensor  # (B or 1) L, bool: real tokens without a place

    def lay_out(self, x: Tensor) -> Tensor:
        """B L D -> (B S) D R C, in channels-last memory."""
        grids, rows, columns = self.size
        laid = _picked(x, self.source).view(len(x) * grids, rows, columns, x.shape[2])
        return laid.permute(0, 3, 1, 2)

    def take_up(self, y: Tensor, batch: int) -> Tensor:
        """(B S) D R C -> B L D, zero where a token stands nowhere."""
        return _picked(y.permute(0, 2, 3, 1).reshape(batch, -1, y.shape[1]), self.place)


def make_canvas(mask: Mask, axes: tuple[int, ...], length: int, device: torch.device) -> Canvas | None:
    """The canvas of the keys of a mask.

    Args:
        axes: two coordinate axes, rows and columns: a grid for each segment and each coordinate on the third axis. None
            of them: a line for each segment, on which its real tokens follow one another.
        length: how many keys there are.

    Returns:
        None where each row is a line as it is.
    """
    if axes:
        return _grids(mask, axes)
    if mask.valid is None and mask.key_segment is None and mask.prefix is None:
        return None
    column = torch.arange(length, device=device)[None] if mask.order is None else mask.order
    real = torch.ones_like(column, dtype=torch.bool) if mask.valid is None else mask.valid
    group = torch.zeros_like(column) if mask.key_segment is None else mask.key_segment
    return _canvas(group, torch.zeros_like(column), column, real, real)


def _grids(mask: Mask, axes: tuple[int, ...]) -> Canvas:
    assert mask.pos is not None, "the stack tells where tokens stand"
    row, column = (mask.pos[..., axis] for axis in axes)
    (third,) = set(range(AXES)) - set(axes)
    group = mask.pos[..., third]
    if mask.key_segment is not None:
        group = mask.key_segment * (group.max() + 2) + group
    real = torch.ones_like(group, dtype=torch.bool) if mask.valid is None else mask.valid
    group, row, column = (part.expand_as(real) for part in (group, row, column))
    return _canvas(group, row, column, real & ~is_special(mask.pos), real)


def _canvas(group: Tensor, row: Tensor, column: Tensor, placed: Tensor, real: Tensor) -> Canvas:
    """Args: (B or 1) L each; row and column from 0 on where a token is placed."""
    length = group.shape[1]
    group = group.masked_fill(~placed, torch.iinfo(group.dtype).max)
    ordered, by_group = group.sort(dim=1)
    begins = torch.zeros_like(group)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = torch.empty_like(group).scatter_(1, by_group, begins.cumsum(1))  # of its group, by number
    several = torch.zeros_like(group).scatter_add_(1, rank, placed.long()) > 1
    placed = placed & several.gather(1, rank)
    grid = (several.long().cumsum(1) - 1).gather(1, rank)
    grids, rows, columns = _sizes(*(x.masked_fill(~placed, 0) for x in (grid, row, column)))
    places = grids * rows * columns
    place = ((grid * rows + row) * columns + column).masked_fill(~placed, places)
    index = torch.arange(length, device=place.device).expand_as(place)
    source = torch.full((len(place), places + 1), length, device=place.device).scatter_(1, place, index)[:, :places]
    return Canvas(source, place, (grids, rows, columns), real & ~placed)


def _sizes(*indexes: Tensor) -> tuple[int, ...]:
    """How many there are, each counted from 0."""
    if indexes[0].is_meta:  # where nothing has a value, a size of 1 is as good as any
        return (1,) * len(indexes)
    return tuple((torch.stack([index.max() for index in indexes]) + 1).tolist())


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """B N D at (B or 1) M indexes, of which N stands for zeros: B M D."""
    x = F.pad(x, (0, 0, 0, 1))
    if len(index) == 1:
        return x.index_select(1, index[0])
    row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (row + index).flatten()).view(*index.shape, x.shape[2])
