"""Which picture each token of a text sees: the last one that stands before it (Flamingo, Alayrac et al. 2022, §2.3.1).

A picture stands where its placeholder does, which sees it already, and stays in the text as a token of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.types import Text, Tokens


def last_media(text: Text, placeholder: int, before: Tensor | None = None) -> Tensor:
    """The number of the last picture up to each id, from 1: B L, int64; 0 where there is none yet.

    Args:
        before: B, the number of the last picture in what the text goes on from; None: it begins here.
    """
    number = (torch.eq(text.ids, placeholder) & text.real).long().cumsum(1)
    return number if before is None else number + before[:, None]


def numbered(tokens: Tokens) -> Tokens:
    """Tokens whose segments are the numbers of their pictures; without segments, all are the first one's."""
    segment = torch.ones_like(tokens.pos[..., 0]) if tokens.segment is None else tokens.segment
    return Tokens(tokens.x, tokens.pos, tokens.valid, segment)


def check_media(media: Tensor, memory: Tokens) -> None:
    """Refuse a row with more placeholders than pictures; it may have fewer, for rows differ in how many they show.

    Raises:
        InputError: which, and how many of both.
    """
    if torch.compiler.is_compiling() or media.is_meta or memory.segment is None:
        return
    found, shown = media[:, -1], int(memory.segment.max())
    wrong = (found > shown).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"Row {row} has {int(found[row])} placeholders, but {shown} pictures: each stands for one of them."
        )
