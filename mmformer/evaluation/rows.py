"""What a metric keeps of the samples that it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from mmformer.collectives import gather_values

Column = Tensor | Sequence[Any]
"""Values of a batch's samples, or of what belongs to them: a tensor, or strings, numbers and tuples of those."""


class Rows:
    """Named columns, which grow batch by batch.

    They are all that a metric computes its scores from. Several processes that have seen the batches by turns put
    theirs together with ``interleave``, and have what one process would have.
    """

    def __init__(self, parts: Sequence[Mapping[str, Column]] = ()) -> None:
        self.parts = list(parts)

    def add(self, columns: Mapping[str, Column]) -> None:
        """Append a batch's; tensors are kept on the CPU."""
        self.parts.append({n: c.cpu() if isinstance(c, Tensor) else list(c) for n, c in columns.items()})

    def __bool__(self) -> bool:
        return any(len(column) for part in self.parts for column in part.values())

    def __contains__(self, name: str) -> bool:
        return any(name in part for part in self.parts)

    def tensor(self, name: str) -> Tensor:
        """A column of tensors: N ..."""
        return torch.cat([torch.as_tensor(part[name]) for part in self.parts])

    def values(self, name: str) -> list[Any]:
        """A column of values that are no tensors."""
        return [value for part in self.parts for value in part[name]]


def interleave(several: Sequence[Rows]) -> Rows:
    """The rows of processes that took the batches by turns: process p those of the numbers p, p + processes, …"""
    turns = zip_longest(*(rows.parts for rows in several))
    return Rows([part for part in chain.from_iterable(turns) if part is not None])


def of_all_ranks(rows: Rows, batches: int) -> Rows:
    """The rows that one process would have, of ranks that took the batches by turns, the last turn filled up.

    Args:
        batches: how many there are in all, each counted once.
    """
    return Rows(interleave([Rows(parts) for parts in gather_values(rows.parts)]).parts[:batches])
