"""Softmax attention: multi-head, grouped-query, self and cross, with query–key normalisation and a cache.

Vaswani et al. 2017 §3.2; grouped queries as in Ainslie et al. 2023; query–key normalisation as in ViT-22B
(Dehghani et al. 2023, §2), here an RMSNorm per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import MEANINGS, Ability
from mmformer.nn.cache import KeyValue
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.kernel import attend
from mmformer.nn.mixer import Mixer, MixerSpec, State, View, even_heads, picked
from mmformer.nn.patient import PatientLinear
from mmformer.nn.pattern import PatternSpec
from mmformer.nn.plan import Sparse
from mmformer.nn.position import Heads, rotate
from mmformer.nn.recomputed import product_of
from mmformer.nn.unaltered import is_unaltered
from mmformer.spec import require, require_probability
from mmformer.types import Aux


@dataclass(frozen=True)
class AttentionSpec(MixerSpec):
    """Softmax attention over a fused kernel.

    Attributes:
        heads: query heads; they share the width out evenly, where ``head_width`` does not say how wide each is.
        head_width: width of each head; None: the width over heads. T5's largest models have wider ones.
        scale: factor on the products of queries and keys; None: one over the root of the head's width. T5 has 1, for
            its first weights are small enough (Raffel et al. 2019, §2.1).
        key_value_heads: key and value heads, each serving heads / key_value_heads query heads; None: as many as heads.
        qk_norm: normalise queries and keys per head, with a learned gain, before they are rotated.
        bias: whether the four projections have biases.
        dropout: on the attention weights. Above 0 the fused CPU kernel cannot be used.
        pattern: which keys a query may see by where the two stand; only blocks of pairs that it allows are computed
            (``nn/blocked.py``). None: all.
    """

    cost: ClassVar[str] = "L²·D"
    source: ClassVar[str] = (
        "Vaswani et al. 2017, §3.2; grouped queries: Ainslie et al. 2023; qk_norm: ViT-22B, Dehghani et al. 2023, §2"
    )

    heads: int = 8
    key_value_heads: int | None = None
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    pattern: PatternSpec | None = None
    head_width: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        require(self.head_width is None or self.head_width >= 1, self, "head_width", "None or at least 1")
        require(self.scale is None or self.scale > 0, self, "scale", "None or positive")
        shared = self.key_value_heads
        divides = shared is None or (shared >= 1 and self.heads % shared == 0)
        require(divides, self, "key_value_heads", f"a divisor of heads ({self.heads})")
        require_probability(self, "dropout")

    @property
    def abilities(self) -> frozenset[Ability]:
        # Places in a row mean nothing between tokens and a memory; queries of a group share a key.
        lacking = {"cross": self.pattern is not None, "rotary_heads": self.key_value_heads not in (None, self.heads)}
        unknown = self.pattern is not None and self.pattern.over_lengths  # how long a row will be, in a causal pass
        lacking |= dict.fromkeys(("causal", "prefix", "cache"), unknown)
        return frozenset(ability for ability in MEANINGS if not lacking.get(ability))

    @property
    def sparse(self) -> Sparse | None:
        return None if self.pattern is None else Sparse(self.pattern, self.dropout)

    @property
    def takes_lowered_mask(self) -> bool:
        return self.pattern is None

    def heads_of(self, width: int) -> Heads:
        return even_heads(self, width, self.heads) if self.head_width is None else Heads(self.heads, self.head_width)

    def build(self, width: int, memory_width: int | None = None) -> Attention:
        return Attention(self, width, memory_width)


class Attention(Mixer):
    """Projects, splits into heads, attends, joins. Self-attention has one fused projection for q, k and v."""

    makes_input_again = True

    def __init__(self, spec: AttentionSpec, width: int, memory_width: int | None) -> None:
        super().__init__()
        self.heads = spec.heads
        self.key_value_heads = spec.key_value_heads or spec.heads
        self.head_width = spec.heads_of(width).width
        self.dropout, self.pattern = spec.dropout, spec.pattern
        self.scale = spec.scale
        inner, key_value = self.heads * self.head_width, 2 * self.key_value_heads * self.head_width
        if memory_width is None:
            self.qkv = nn.Linear(width, inner + key_value, bias=spec.bias)
        else:
            self.q = nn.Linear(width, inner, bias=spec.bias)
            self.kv = nn.Linear(memory_width, key_value, bias=spec.bias)
        self.query_norm = nn.RMSNorm(self.head_width, eps=1e-6) if spec.qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_width, eps=1e-6) if spec.qk_norm else None
        self.out = nn.Linear(inner, width, bias=spec.bias)

    def roles(self) -> Roles:
        shared = self.key_value_heads * self.head_width
        query, key_value = Rows("query", self.heads * self.head_width), (Rows("key", shared), Rows("value", shared))
        entering: Roles = {"q": (query,), "kv": key_value} if hasattr(self, "kv") else {"qkv": (query, *key_value)}
        return {**entering, "out": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        past = None if state is None else KeyValue(*state)
        if view.memory is None:
            query, seen = self._attend_to_self(x, view, past)
        else:
            query, seen = self._attend_to_memory(x, view.memory, past, keep)
        y = self._attended(query, seen, view)  # B H L width of a head
        y = self.out(y.transpose(1, 2).flatten(2))  # B L D
        return y, (seen if keep else None), {}

    def _attended(self, query: Tensor, seen: KeyValue, view: View) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        plan = view.plans.get(self.pattern)
        if plan is not None:  # which divides by the root of the head's width
            query = query if self.scale is None else query * (self.scale * self.head_width**0.5)
            return plan.attend(query, seen.key, seen.value, dropout)
        mask, causal = view.lowered, False
        if mask is None or self.pattern is not None:
            structure = view.mask._replace(pattern=self.pattern)
            mask, causal = structure.sdpa(query.shape[2], seen.key.shape[2], view.bias, query.device)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return attend(query, seen.key, seen.value, mask, causal, dropout, self.scale)

    def _attend_to_self(self, x: Tensor, view: View, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        q, k, v = self._projected(x) if view.read is None else self._projected_for(x, view.read)
        query, key, value = self._split(q), self._split(k), self._split(v)
        query, key = self._normalise(query, self.query_norm), self._normalise(key, self.key_norm)
        if view.rotary is not None:
            query, key = rotate(query, view.rotary), rotate(key, view.rotary)
        return query, KeyValue(key, value) if past is None else past.followed_by(key, value)

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        width, shared = self.heads * self.head_width, self.key_value_heads * self.head_width
        return torch.split(product_of(x, self.qkv), [width, shared, shared], dim=-1)

    def _projected_for(self, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with queries of some tokens alone."""
        parts = [self.heads * self.head_width, 2 * self.key_value_heads * self.head_width]
        weights = torch.split(self.qkv.weight, parts)
        biases = (None, None) if self.qkv.bias is None else torch.split(self.qkv.bias, parts)
        q = F.linear(picked(x, read), weights[0], biases[0])  # B K D
        k, v = product_of(x, lambda made: F.linear(made, weights[1], biases[1])).chunk(2, dim=-1)
        return q, k, v

    def asks_alone(self, view: View) -> bool:
        """Where all see all, nothing is rotated or added to scores, and a plain map makes queries, keys and values."""
        own = type(self) is Attention and not torch.compiler.is_compiling()
        if not own or view.plans or view.rotary is not None or view.bias is not None or view.lowered is not None:
            return False
        open_to_all = self.pattern is None and all(part is None or part is False for part in view.mask)
        return open_to_all and type(self.qkv) in (nn.Linear, PatientLinear) and is_unaltered(self.qkv)

    def _attend_to_memory(
        self, x: Tensor, memory: Tensor, past: KeyValue | None, keep: bool
    ) -> tuple[Tensor, KeyValue]:
        query = self._normalise(self._split(product_of(x, self.q)), self.query_norm)
        if past is not None:  # memory does not change while decoding
            return query, past
        key, value = self.kv(memory).chunk(2, dim=-1)
        seen = KeyValue(self._normalise(self._split(key), self.key_norm), self._split(value))
        if keep and not torch.is_grad_enabled():  # read once for each id: half as fast where heads lie between heads
            seen = KeyValue(seen.key.contiguous(), seen.value.contiguous())
        return query, seen

    def _split(self, x: Tensor) -> Tensor:  # B L (heads width) -> B heads L width
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_width, self.head_width).transpose(1, 2)

    @staticmethod
    def _normalise(x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return x if norm is None else F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)
