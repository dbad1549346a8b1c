"""What attention means in which some tokens stand everywhere: loops over queries, in float64 and without torch.nn."""

from __future__ import annotations

import math

import numpy as np
from position_reference import Array, array
from torch import nn

from mmformer.nn.everywhere import GlobalAttentionSpec


def global_attention(
    spec: GlobalAttentionSpec,
    module: nn.Module,
    x: Array,
    memory: None,
    allowed: Array,
    everywhere: Array,
    bias: None = None,
) -> tuple[Array, Array]:
    """Queries that stand everywhere, B L, ask in another way of what their pattern lets them see, which is all."""
    assert memory is None and bias is None
    size, joined = x.shape[2] // spec.heads, np.zeros_like(x)
    local = np.split(projected(module.qkv, x), 3, axis=-1)
    own = [projected(module.global_q, x), *np.split(projected(module.global_kv, x), 2, axis=-1)]
    for b, i, head in np.ndindex(*x.shape[:2], spec.heads):
        rows = slice(head * size, (head + 1) * size)
        query, key, value = (part[b, :, rows] for part in (own if everywhere[b, i] else local))
        weights = {j: math.exp(query[i] @ key[j] / math.sqrt(size)) for j in np.flatnonzero(allowed[b, i])}
        for j, weight in weights.items():
            joined[b, i, rows] += weight / sum(weights.values()) * value[j]
    return joined, projected(module.out, joined)


def projected(module: nn.Linear, x: Array) -> Array:
    y = x @ array(module.weight).T
    return y if module.bias is None else y + array(module.bias)
