"""What attention with content-dependent relative positions means, as loops over queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from position_reference import Array, array
from torch import nn

from mmformer.nn.shaw import ShawAttentionSpec


def shaw(
    spec: ShawAttentionSpec,
    module: nn.Module,
    x: Array,
    memory: None,
    allowed: Array,
    turns: None = None,
    bias: Callable[[int, int, int, int], float] | None = None,
) -> tuple[Array, Array]:
    """The paper's equations (3) and (4), a vector for each pair."""
    batch, length, width = x.shape
    size = width // spec.heads
    in_bias, out_bias = (array(map_.bias) if spec.bias else 0.0 for map_ in (module.qkv, module.out))
    projected = np.split(x @ array(module.qkv.weight).T + in_bias, 3, axis=-1)
    nothing = np.zeros((2 * spec.distance + 1, size))
    of_key = array(module.key_vectors) if spec.relative_keys else nothing
    of_value = array(module.value_vectors) if spec.relative_values else nothing
    joined = np.zeros_like(x)
    for b in range(batch):
        for head in range(spec.heads):
            rows = slice(head * size, (head + 1) * size)
            query, key, value = (part[b, :, rows] for part in projected)
            for i in range(length):
                seen = [j for j in range(length) if allowed[b, i, j]]
                clipped = {j: clip(steps(allowed[b], i, j), spec.distance) + spec.distance for j in seen}
                scores = {j: query[i] @ (key[j] + of_key[clipped[j]]) / math.sqrt(size) for j in seen}
                weights = {j: math.exp(s + (bias(b, head, i, j) if bias else 0.0)) for j, s in scores.items()}
                for j, weight in weights.items():
                    joined[b, i, rows] += weight / sum(weights.values()) * (value[j] + of_value[clipped[j]])
    return joined, joined @ array(module.out.weight).T + out_bias


def steps(allowed: Array, i: int, j: int) -> int:
    """From i to j, over the real tokens of their segment: those that see themselves, and one of i and they the other.

    Args:
        allowed: queries, keys; i sees j.
    """
    low, high = min(i, j), max(i, j)
    between = sum(bool(allowed[k, k] and (allowed[i, k] or allowed[k, i])) for k in range(low, high))
    return between if j > i else -between


def clip(x: int, most: int) -> int:
    return max(-most, min(most, x))
