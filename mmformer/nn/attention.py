"""Softmax attention: multi-head, grouped-query, self and cross, with query–key normalisation and a cache.

Vaswani et al. 2017 §3.2; grouped queries as in Ainslie et al. 2023; query–key normalisation as in ViT-22B
(Dehghani et al. 2023, §2), here an RMSNorm per head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.nn.kernel import attend
from mmformer.nn.mixer import Aux, KeyValue, Mixer, MixerSpec, State, View
from mmformer.nn.position import rotate
from mmformer.spec import require, require_probability


@dataclass(frozen=True)
class AttentionSpec(MixerSpec):
    """Softmax attention over a fused kernel.

    Attributes:
        heads: query heads; they share the width out evenly.
        key_value_heads: key and value heads, each serving heads / key_value_heads query heads; None: as many as heads.
        qk_norm: normalise queries and keys per head, with a learned gain, before they are rotated.
        bias: whether the four projections have biases.
        dropout: on the attention weights. Above 0 the fused CPU kernel cannot be used.
    """

    heads: int = 8
    key_value_heads: int | None = None
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        shared = self.key_value_heads
        divides = shared is None or (shared >= 1 and self.heads % shared == 0)
        require(divides, self, "key_value_heads", f"a divisor of heads ({self.heads})")
        require_probability(self, "dropout")

    def head_width(self, width: int) -> int:
        if width % self.heads:
            raise InputError(
                f"AttentionSpec.heads must divide the stack's width, but {self.heads} heads do not divide {width}: "
                f"take {_nearest_divisor(width, self.heads)} heads, or a width that is a multiple of {self.heads}."
            )
        return width // self.heads

    def build(self, width: int, memory_width: int | None = None) -> Attention:
        return Attention(self, width, memory_width)


class Attention(Mixer):
    """Projects, splits into heads, attends, joins. Self-attention has one fused projection for q, k and v."""

    def __init__(self, spec: AttentionSpec, width: int, memory_width: int | None) -> None:
        super().__init__()
        self.heads = spec.heads
        self.key_value_heads = spec.key_value_heads or spec.heads
        self.head_width = spec.head_width(width)
        self.dropout = spec.dropout
        key_value = 2 * self.key_value_heads * self.head_width
        if memory_width is None:
            self.qkv = nn.Linear(width, width + key_value, bias=spec.bias)
        else:
            self.q = nn.Linear(width, width, bias=spec.bias)
            self.kv = nn.Linear(memory_width, key_value, bias=spec.bias)
        self.query_norm = nn.RMSNorm(self.head_width, eps=1e-6) if spec.qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_width, eps=1e-6) if spec.qk_norm else None
        self.out = nn.Linear(width, width, bias=spec.bias)

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        if view.memory is None:
            query, seen = self._attend_to_self(x, view, state)
        else:
            query, seen = self._attend_to_memory(x, view.memory, state)
        bias = None if view.bias is None else view.bias.to(query.dtype)
        mask, causal = view.mask.sdpa(query.shape[2], seen.key.shape[2], bias, query.device)
        dropout = self.dropout if self.training else 0.0
        y = attend(query, seen.key, seen.value, mask, causal, dropout)  # B H L width of a head
        y = self.out(y.transpose(1, 2).flatten(2))  # B L D
        return y, (seen if keep else None), {}

    def _attend_to_self(self, x: Tensor, view: View, state: State | None) -> tuple[Tensor, KeyValue]:
        width, shared = self.heads * self.head_width, self.key_value_heads * self.head_width
        q, k, v = self.qkv(x).split((width, shared, shared), dim=-1)
        query, key, value = self._split(q), self._split(k), self._split(v)
        query, key = self._normalise(query, self.query_norm), self._normalise(key, self.key_norm)
        if view.rotary is not None:
            query, key = rotate(query, view.rotary), rotate(key, view.rotary)
        if state is not None:
            key = torch.cat((state.key, key), dim=2)
            value = torch.cat((state.value, value), dim=2)
        return query, KeyValue(key, value)

    def _attend_to_memory(self, x: Tensor, memory: Tensor, state: State | None) -> tuple[Tensor, KeyValue]:
        query = self._normalise(self._split(self.q(x)), self.query_norm)
        if state is not None:  # memory does not change while decoding
            return query, state
        key, value = self.kv(memory).chunk(2, dim=-1)
        return query, KeyValue(self._normalise(self._split(key), self.key_norm), self._split(value))

    def _split(self, x: Tensor) -> Tensor:  # B L (heads width) -> B heads L width
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_width, self.head_width).transpose(1, 2)

    @staticmethod
    def _normalise(x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return x if norm is None else F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def _nearest_divisor(width: int, heads: int) -> int:
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
