"""What every modality tokenizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.spec import Catalogued, family
from mmformer.types import AXES, Tokens


@family
@dataclass(frozen=True)
class TokenizerSpec(Catalogued, ABC):
    """A way to turn one modality into Tokens.

    ``modality`` is the field of Batch that it reads; ``files`` are the fields that name files, which a bundle takes
    along.
    """

    modality: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()

    @property
    def places(self) -> tuple[int | None, ...]:
        """How many places its tokens take on each coordinate axis, at most; None: it depends on what it is handed."""
        return (None,) * AXES

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from the modality's value in a Batch to Tokens of a width."""


def grid_tokens(x: Tensor, rows: int, columns: int) -> Tokens:
    """Tokens of an image, B (rows columns) D, with coordinates (0, row, column)."""
    row = torch.arange(rows, device=x.device).repeat_interleave(columns)
    column = torch.arange(columns, device=x.device).repeat(rows)
    pos = torch.stack((torch.zeros_like(row), row, column), dim=-1)  # L A
    return Tokens(x, pos.expand(x.shape[0], rows * columns, AXES))
