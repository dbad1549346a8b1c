"""Linear attention: weights that are products of positive features, so that no query meets its keys one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import Ability
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.linear_product import weigh
from mmformer.nn.mixer import Mixer, MixerSpec, State, View, even_heads
from mmformer.nn.position import Heads, rotate
from mmformer.nn.precision import exact_dtype, without_autocast
from mmformer.spec import require
from mmformer.types import Aux


@dataclass(frozen=True)
class FeatureAttentionSpec(MixerSpec, ABC):
    """Attention by features of queries and keys.

    Attributes:
        heads: share the width out evenly.
        bias: whether the four projections have biases.
    """

    heads: int = 8
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset(
            {"causal", "bidirectional", "prefix", "cache", "cross", "padding", "packing", "rotary", "rotary_heads"}
        )

    def heads_of(self, width: int) -> Heads:
        return even_heads(self, width, self.heads)


class FeatureAttention(Mixer, ABC):
    """Projects, splits into heads, attends in float32, joins."""

    def __init__(self, spec: FeatureAttentionSpec, width: int, memory_width: int | None) -> None:
        super().__init__()
        self.heads = spec.heads_of(width)
        if memory_width is None:
            self.qkv = nn.Linear(width, 3 * width, bias=spec.bias)
        else:
            self.q = nn.Linear(width, width, bias=spec.bias)
            self.kv = nn.Linear(memory_width, 2 * width, bias=spec.bias)
        self.out = nn.Linear(width, width, bias=spec.bias)

    def roles(self) -> Roles:
        width = self.out.in_features
        query, key_value = Rows("query", width), (Rows("key", width), Rows("value", width))
        entering: Roles = {"q": (query,), "kv": key_value} if hasattr(self, "kv") else {"qkv": (query, *key_value)}
        return {**entering, "out": (Rows("output"),)}

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, view: View, past: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        """Attend: B H Q width of a head, B H K width of a head twice -> B H Q width of a head, and a state."""

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        query, key, value = self._projected(x, view.memory, state)
        exact = exact_dtype(query)
        with without_autocast(x):  # sums over a long row need the precision
            y, after = self.attend(query.to(exact), key.to(exact), value.to(exact), view, state, keep)
        y = self.out(y.transpose(1, 2).flatten(2).to(query.dtype))  # B L D
        return y, after, {}

    def _projected(self, x: Tensor, memory: Tensor | None, past: State | None) -> tuple[Tensor, ...]:
        if memory is None:
            return self._split(self.qkv(x), 3)
        # Memory does not change while decoding: what is known of it is in the state.
        return (*self._split(self.q(x), 1), *self._split(self.kv(memory if past is None else memory[:, :0]), 2))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """B L (parts D) -> parts of B H L width of a head."""
        return tuple(part.view(*part.shape[:2], *self.heads).transpose(1, 2) for part in x.chunk(parts, dim=-1))


def attend_by_features(
    query: Tensor, key: Tensor, value: Tensor, view: View, past: State | None, keep: bool
) -> tuple[Tensor, State | None]:
    """The mean of the values that a query sees, weighed by query · key; zero where it sees nothing.

    Args:
        query: B H Q F, not negative.
        key: B H K F, not negative.
        value: B H K width of a head.
    """
    y, after = weigh(query, key, F.pad(value, (0, 1), value=1.0), view.mask, past, keep)
    sums, weights = torch.split(y, [value.shape[3], 1], dim=-1)
    return divided(sums, weights), after


def divided(sums: Tensor, weights: Tensor) -> Tensor:
    """sums / weights, and zero where nothing weighs anything."""
    return sums / weights.masked_fill(weights == 0, 1.0)


@dataclass(frozen=True)
class LinearAttentionSpec(FeatureAttentionSpec):
    """Attention with the weights φ(q)·φ(k), φ = elu + 1, in place of softmax's.

    Rotation turns the features in the weighed sum of values and leaves the sum of weights that divides it alone: the
    weights depend on how far apart tokens are, and may be negative.
    """

    cost: ClassVar[str] = "L·D²/heads"
    source: ClassVar[str] = "Katharopoulos et al. 2020, §3; with rotation: RoFormer, Su et al. 2021, §3.3"

    def build(self, width: int, memory_width: int | None = None) -> LinearAttention:
        return LinearAttention(self, width, memory_width)


class LinearAttention(FeatureAttention):
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, view: View, past: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        query, key = F.elu(query).add_(1), F.elu(key).add_(1)
        if view.rotary is None:
            return attend_by_features(query, key, value, view, past, keep)
        # Two sums with weights of their own: twice as many heads.
        query, key = (torch.cat((rotate(x, view.rotary), x), dim=1) for x in (query, key))
        y, after = weigh(query, key, torch.cat((value, torch.ones_like(value)), dim=1), view.mask, past, keep)
        return divided(*y.chunk(2, dim=1)), after
