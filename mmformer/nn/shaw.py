"""Attention with relative positions that depend on content: each distance between a query and a key, up to a bound, has
a learned vector, which is added to the key, and another, which is added to the value.

No vector is made for a pair. Products of queries with the vectors of all distances are one small matrix product, of
which each pair takes its own; and the weights that a query gives to keys at one distance are summed before they
multiply that distance's vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.ability import Ability
from mmformer.nn.cache import KeyValue
from mmformer.nn.dropout import drop
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.kernel import weigh
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import Mixer, MixerSpec, State, View, even_heads
from mmformer.nn.position import Heads
from mmformer.spec import require, require_probability
from mmformer.types import Aux


@dataclass(frozen=True)
class ShawAttentionSpec(MixerSpec):
    """Softmax attention with learned relative positions for keys and values, shared by the heads of a layer.

    Distances are counted over the real tokens of a segment, in the order of the row.

    Attributes:
        heads: share the width out evenly.
        distance: from which on all tokens before a query, and all after it, are taken for equally far.
        relative_keys: add vectors of distances to keys.
        relative_values: add vectors of distances to values; the paper finds little in them beside those of keys.
        bias: whether the projections have biases.
        dropout: on the attention weights.
    """

    cost: ClassVar[str] = "L²·D"
    source: ClassVar[str] = "Shaw et al. 2018, §3.2 and §3.3"

    heads: int = 8
    distance: int = 16
    relative_keys: bool = True
    relative_values: bool = True
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        require(self.distance >= 1, self, "distance", "at least 1")
        allowed = "true where relative_keys is not: without both, take AttentionSpec"
        require(self.relative_keys or self.relative_values, self, "relative_values", allowed)
        require_probability(self, "dropout")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"causal", "bidirectional", "prefix", "cache", "padding", "packing", "bias"})

    @property
    def asks_order(self) -> bool:
        return True

    def heads_of(self, width: int) -> Heads:
        return even_heads(self, width, self.heads)

    def build(self, width: int, memory_width: int | None = None) -> ShawAttention:
        return ShawAttention(self, width)


class ShawAttention(Mixer):
    undecayed = ("key_vectors", "value_vectors")

    def __init__(self, spec: ShawAttentionSpec, width: int) -> None:
        super().__init__()
        self.head_width = spec.heads_of(width).width
        self.distance, self.dropout = spec.distance, spec.dropout
        self.qkv = nn.Linear(width, 3 * width, bias=spec.bias)
        vectors = (2 * spec.distance + 1, self.head_width)  # of keys so many tokens before to so many after
        self.key_vectors = nn.Parameter(torch.empty(vectors)) if spec.relative_keys else None
        self.value_vectors = nn.Parameter(torch.empty(vectors)) if spec.relative_values else None
        self.out = nn.Linear(width, width, bias=spec.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for vectors in (self.key_vectors, self.value_vectors):
            if vectors is not None:
                nn.init.trunc_normal_(vectors, std=0.02)

    def roles(self) -> Roles:
        width = self.out.in_features
        return {"qkv": tuple(Rows(role, width) for role in ("query", "key", "value")), "out": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        seen = KeyValue(key, value) if state is None else KeyValue(*state).followed_by(key, value)
        y = self.out(self._attended(query, seen.key, seen.value, view).transpose(1, 2).flatten(2))  # B L D
        return y, (seen if keep else None), {}

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        query = query * self.head_width**-0.5
        scores = query @ key.mT  # B H Q K
        step = self._steps(view.mask, queries, keys, query.device).expand_as(scores)
        if self.key_vectors is not None:
            scores = scores + (query @ self.key_vectors.to(query.dtype).T).gather(-1, step)
        if view.bias is not None:
            scores = scores + view.bias.to(scores.dtype)
        weights = weigh(scores, view.mask.dense(queries, keys, query.device))
        weights = drop(weights, self.dropout, self.training)
        y = weights @ value
        if self.value_vectors is not None:
            share = weights.new_zeros(*weights.shape[:3], len(self.value_vectors)).scatter_add(-1, step, weights)
            y = y + share @ self.value_vectors.to(share.dtype)
        return y

    def _steps(self, mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor:
        """(B or 1) 1 Q K: the index of the vectors of each pair's distance."""
        order = torch.arange(keys, device=device)[None] if mask.order is None else mask.order
        ahead = order[:, None, :] - order[:, keys - queries :, None]
        return (ahead.clamp(-self.distance, self.distance) + self.distance)[:, None]

    def _split(self, x: Tensor) -> Tensor:  # B L (H width) -> B H L width
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_width, self.head_width).transpose(1, 2)
