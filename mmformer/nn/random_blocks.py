"""Blocks of a row that see some others, drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.nn.pattern import PatternSpec, Places, span
from mmformer.spec import require


@dataclass(frozen=True)
class RandomBlocksSpec(PatternSpec):
    """Each block of queries sees some blocks of keys, drawn once (BigBird, Zaheer et al. 2020, §2).

    What a block sees depends on its place and on the seed, not on the row's length: some of the blocks up to its own,
    and as many of those after it, as far as there are.

    Attributes:
        size: tokens of a block.
        blocks: that a block sees on each side, at random.
        seed: of the draw.
    """

    cost: ClassVar[str] = "L·size·blocks·D"
    source: ClassVar[str] = "BigBird, Zaheer et al. 2020, §2"

    size: int = 64
    blocks: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.size >= 1, self, "size", "at least 1")
        require(self.blocks >= 1, self, "blocks", "at least 1")
        require(0 <= self.seed < 2**31, self, "seed", "from 0 to 2^31 - 1")

    def allows(self, query: Places, key: Places) -> Tensor:
        own, seen = query.order // self.size, key.order // self.size
        return reduce(torch.logical_or, [seen == drawn for drawn in self._drawn(own)])

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        asking, asked = span(query.order // self.size, size), span(key.order // self.size, size)
        most = int(max(asking.most.max(), asked.most.max())) + 1
        own = torch.arange(most, device=query.order.device)
        drawn = torch.zeros(most, 2 * most + 1, device=own.device)
        for block in self._drawn(own):
            drawn[own, block] = 1.0
        inside = [(own >= part.least[..., None]) & (own <= part.most[..., None]) for part in (asking, asked)]
        return (inside[0].float() @ drawn[:, :most] @ inside[1].float().transpose(1, 2)) > 0

    def _drawn(self, own: Tensor) -> Iterator[Tensor]:
        """The blocks that blocks of these numbers see: among as many on the right as there are on the left."""
        for draw in range(self.blocks):
            yield _hash(own, 2 * draw, self.seed) % (own + 1)
            yield own + 1 + _hash(own, 2 * draw + 1, self.seed) % (own + 1)


def _hash(x: Tensor, draw: int, seed: int) -> Tensor:
    """Numbers that look drawn at random, of whole numbers: the finaliser of MurmurHash3, on 31 bits."""
    h = (x * 0x9E3779B1 + draw * 0x85EBCA6B + seed * 0xC2B2AE35 + 0x27D4EB2F) & 0x7FFFFFFF
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    h = ((h ^ (h >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    return h ^ (h >> 15)
