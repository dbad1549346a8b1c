"""Tokens that stand everywhere: whoever asks chooses them, and they see all of a row and are seen by all of it.

A token of a text stands on the first axis; on the last it has a place only so that it can be told to have none: below 0
there, it stands everywhere. Special tokens do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.ability import Ability
from mmformer.nn.attention import Attention, AttentionSpec
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import MixerSpec, State, View
from mmformer.nn.pattern import AnyOfSpec, JoinedSpec, PatternSpec, Places, WindowSpec, span
from mmformer.nn.plan import Sparse
from mmformer.nn.position import Heads
from mmformer.spec import require, require_probability
from mmformer.types import AXES, Aux, stands_everywhere


@dataclass(frozen=True)
class EverywhereSpec(PatternSpec):
    """Tokens that stand everywhere see all and are seen by all: those of a text that ``Text.everywhere`` says, and
    special ones."""

    cost: ClassVar[str] = "L·tokens·D"
    source: ClassVar[str] = "Longformer, Beltagy et al. 2020, §3.1"

    @property
    def over_coordinates(self) -> bool:
        return True

    def allows(self, query: Places, key: Places) -> Tensor:
        return (query.along(AXES - 1) < 0) | (key.along(AXES - 1) < 0)

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        asking, asked = (span(places.along(AXES - 1), size).least < 0 for places in (query, key))
        return asking[:, :, None] | asked[:, None, :]


@dataclass(frozen=True)
class GlobalAttentionSpec(MixerSpec):
    """Sparse attention in which tokens that stand everywhere see all by projections of their own.

    They replace what these tokens ask and what they are told; how others see them, the pattern says, and the other
    projections.

    Attributes:
        heads: they share the width out evenly.
        pattern: which keys the other queries see; blocks of pairs that it allows are computed (``nn/blocked.py``).
        bias: whether the projections have biases.
        dropout: on the attention weights.
    """

    cost: ClassVar[str] = "that of the pattern + L·tokens·D"
    source: ClassVar[str] = "Longformer, Beltagy et al. 2020, §3.1, linear projections for global attention"

    heads: int = 8
    pattern: PatternSpec = AnyOfSpec((WindowSpec(), EverywhereSpec()))
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        require_probability(self, "dropout")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"bidirectional", "padding", "packing"})

    @property
    def sparse(self) -> Sparse:
        return Sparse(self.pattern, self.dropout)

    @property
    def local(self) -> AttentionSpec:
        """What the others attend by."""
        return AttentionSpec(self.heads, bias=self.bias, dropout=self.dropout, pattern=self.pattern)

    def heads_of(self, width: int) -> Heads:
        return self.local.heads_of(width)

    def build(self, width: int, memory_width: int | None = None) -> GlobalAttention:
        return GlobalAttention(self, width)


class GlobalAttention(Attention):
    """Attention, then other rows in place of some of its own; both go through one projection out."""

    def __init__(self, spec: GlobalAttentionSpec, width: int) -> None:
        super().__init__(spec.local, width, None)
        self.global_q = nn.Linear(width, width, bias=spec.bias)
        self.global_kv = nn.Linear(width, 2 * width, bias=spec.bias)

    def roles(self) -> Roles:
        width = self.heads * self.head_width
        own: Roles = {"global_q": (Rows("query"),), "global_kv": (Rows("key", width), Rows("value", width))}
        return {**super().roles(), **own}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        assert state is None and not keep, "it cannot go on from earlier tokens"
        query, seen = self._attend_to_self(x, view, None)
        y = self._attended(query, seen, view)  # B H L width of a head
        pos = view.mask.pos
        assert pos is not None, "the stack says where tokens stand"
        everywhere = stands_everywhere(pos).expand(len(x), -1)  # B L
        index = everywhere.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : _most(everywhere)]  # B G
        made = self._seeing_all(x, index, view.mask)  # B H G width of a head
        among = torch.zeros_like(y).scatter(2, index[:, None, :, None].expand_as(made), made)
        y = torch.where(everywhere[:, None, :, None], among, y)
        return self.out(y.transpose(1, 2).flatten(2)), None, {}

    def _seeing_all(self, x: Tensor, index: Tensor, mask: Mask) -> Tensor:
        """What tokens at some indexes, B G, make of all that is valid and of their segment."""
        asking = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        key, value = self.global_kv(x).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (self.global_q(asking), key, value))
        row = torch.arange(len(x), device=x.device)[:, None, None]
        place = torch.arange(x.shape[1], device=x.device)
        allowed = mask._replace(pattern=None).sees(row, index[:, :, None], place[None, None])
        seen = None if allowed is None else allowed[:, None]
        return attend(query, key, value, seen, False, self.dropout if self.training else 0.0)


def _most(everywhere: Tensor) -> int:
    """How many of a row's tokens to ask for: as many as the row that has most, one at least.

    A compiled graph has no such number, and a tensor without values neither: all ask.
    """
    if torch.compiler.is_compiling() or everywhere.is_meta:
        return everywhere.shape[1]
    return max(1, int(everywhere.sum(1).max()))


def knows_everywhere(mixer: MixerSpec) -> bool:
    """Whether it makes a difference to a mixer which tokens stand everywhere."""
    return isinstance(mixer, GlobalAttentionSpec) or (mixer.sparse is not None and _holds(mixer.sparse.pattern))


def _holds(pattern: PatternSpec) -> bool:
    if isinstance(pattern, JoinedSpec):
        return any(_holds(each) for each in pattern.patterns)
    return isinstance(pattern, EverywhereSpec)
