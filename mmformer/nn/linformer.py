"""Linformer: softmax attention to a few learned mixtures of the keys, in linear time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.kernel import attend
from mmformer.nn.mixer import Mixer, MixerSpec, State, View, even_heads
from mmformer.nn.position import Heads
from mmformer.spec import require, require_probability
from mmformer.types import Aux


@dataclass(frozen=True)
class LinformerSpec(MixerSpec):
    """Attention to ``projected`` learned sums over the places of a row, of its keys and of its values.

    Each sum mixes all tokens of a row: there is no causal form, and segments cannot be kept apart. Places are counted
    over the real tokens; those that are not valid add nothing, as if the row were shorter.

    Attributes:
        heads: share the width out evenly.
        length: places that a row has at most. A longer one is refused.
        projected: how many sums there are.
        sharing: ``none`` gives each head sums of its own; ``heads`` has them share those of the keys, and those of the
            values; ``keys_and_values`` has all share one.
        bias: whether the four projections of tokens have biases.
        dropout: on the attention weights.
    """

    cost: ClassVar[str] = "L·projected·D"
    source: ClassVar[str] = "Linformer, Wang et al. 2020, §4"

    heads: int = 8
    length: int = 512
    projected: int = 128
    sharing: Literal["none", "heads", "keys_and_values"] = "heads"
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        require(self.length >= 1, self, "length", "at least 1")
        require(1 <= self.projected <= self.length, self, "projected", f"from 1 to length ({self.length})")
        known = self.sharing in ("none", "heads", "keys_and_values")
        require(known, self, "sharing", "'none', 'heads' or 'keys_and_values'")
        require_probability(self, "dropout")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"bidirectional", "padding"})

    @property
    def longest(self) -> int:
        return self.length

    def heads_of(self, width: int) -> Heads:
        return even_heads(self, width, self.heads)

    def build(self, width: int, memory_width: int | None = None) -> Linformer:
        return Linformer(self, width)


class Linformer(Mixer):
    stacked = ("key_sums", "value_sums")  # of a matrix for each set of sums

    def __init__(self, spec: LinformerSpec, width: int) -> None:
        super().__init__()
        self.length, self.dropout = spec.length, spec.dropout
        self.head_width = spec.heads_of(width).width
        self.qkv = nn.Linear(width, 3 * width, bias=spec.bias)
        sets, shape = spec.heads if spec.sharing == "none" else 1, (spec.projected, spec.length)
        self.key_sums = nn.Parameter(torch.empty(sets, *shape))
        self.value_sums = None if spec.sharing == "keys_and_values" else nn.Parameter(torch.empty(sets, *shape))
        self.out = nn.Linear(width, width, bias=spec.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for sums in (self.key_sums, self.value_sums):
            if sums is not None:  # the sums over a full row have the variance of what they sum
                nn.init.normal_(sums, std=self.length**-0.5)

    def roles(self) -> Roles:
        width = self.out.in_features
        return {"qkv": (Rows("query", width), Rows("key", width), Rows("value", width)), "out": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        if x.shape[1] > self.length:
            raise InputError(
                f"Linformer sums over {self.length} places, but a row has {x.shape[1]} tokens: raise "
                f"LinformerSpec.length, or shorten the input."
            )
        query, key_value = self.qkv(x).split((x.shape[2], 2 * x.shape[2]), dim=-1)
        if view.mask.valid is not None:
            key_value = real_first(key_value, view.mask.valid)
        key, value = (self._split(part) for part in key_value.chunk(2, dim=-1))
        value_sums = self.key_sums if self.value_sums is None else self.value_sums
        key, value = self._summed(self.key_sums, key), self._summed(value_sums, value)
        y = attend(self._split(query), key, value, None, False, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2)), None, {}

    def _split(self, x: Tensor) -> Tensor:  # B L D -> B H L width of a head
        return x.view(*x.shape[:2], -1, self.head_width).transpose(1, 2)

    @staticmethod
    def _summed(sums: Tensor, x: Tensor) -> Tensor:
        """Sums over a row: B H L width -> B H projected width."""
        return sums[:, :, : x.shape[2]].to(x.dtype) @ x


def real_first(x: Tensor, valid: Tensor) -> Tensor:
    """The valid tokens of each row in their order, then zeros: B L D, B L."""
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    return x.masked_fill(~valid[..., None], 0.0).gather(1, order[..., None].expand_as(x))
