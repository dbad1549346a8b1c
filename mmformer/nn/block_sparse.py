"""Blocks of a long row that see their neighbours and its two ends: what BigBird's published weights compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.nn.pattern import PatternSpec, Places, span
from mmformer.spec import require


@dataclass(frozen=True)
class BlockSparseSpec(PatternSpec):
    """Blocks see themselves, the one on each side, and the row's first and last, which see all; a short row sees all.

    In training, BigBird also sees blocks at random. Its published code has the first in place of each of those where it
    does not train, and so counts the first several times over: what weights that were trained so are evaluated with.
    The last block is that of the row's own last token, whatever longer rows stand beside it.

    Attributes:
        size: tokens of a block.
        whole: rows of up to so many tokens are not cut into blocks.
        first: how many times the sums of the softmax count the first block, for queries that do not see all.
    """

    cost: ClassVar[str] = "L·size·D"
    source: ClassVar[str] = "BigBird, Zaheer et al. 2020, §2 and appendix D; google-research/bigbird"

    size: int = 64
    whole: int = 704
    first: int = 4

    def __post_init__(self) -> None:
        require(self.size >= 1, self, "size", "at least 1")
        require(self.whole >= 0, self, "whole", "at least 0")
        require(self.first >= 1, self, "first", "at least 1")

    @property
    def over_lengths(self) -> bool:
        return True

    def allows(self, query: Places, key: Places) -> Tensor:
        asking, asked = (places.order // self.size for places in (query, key))
        return self._sees_all(query) | self._ends(key) | ((asking - asked).abs() <= 1)

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        asking, asked = (span(places.order // self.size, size) for places in (query, key))
        whole, ends = (span(mark.long(), size).most > 0 for mark in (self._sees_all(query), self._ends(key)))
        return asking.meets(asked, 1, 1) | whole[:, :, None] | ends[:, None, :]

    def bias(self, query: Places, key: Places) -> Tensor:
        several = (key.order < self.size) & ~self._sees_all(query)
        return torch.where(several, math.log(self.first), 0.0)

    def _sees_all(self, places: Places) -> Tensor:
        return self._ends(places) | (places.length <= self.whole)

    def _ends(self, places: Places) -> Tensor:
        """Which tokens are of the first block or the last; padding comes after it."""
        last = (places.order // self.size == (places.length - 1) // self.size) & (places.order < places.length)
        return (places.order < self.size) | last
