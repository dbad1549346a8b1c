"""What attention in linear time means, as loops over queries and keys: of one head of one sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import nn

from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.performer import PerformerSpec

Array = np.ndarray
Turned = Callable[[Array, int], Array]
"""What rotation makes of a vector of the token at a place."""


def linear_attention(
    spec: LinearAttentionSpec,
    module: nn.Module,
    head: int,
    query: Array,
    key: Array,
    value: Array,
    allowed: Array,
    turned: Turned,
) -> Array:
    def features(x: Array) -> Array:
        return np.array([component + 1 if component > 0 else math.exp(component) for component in x])

    y = np.zeros_like(query)
    for i, q in enumerate(query):
        total = 0.0
        for j, k in enumerate(key):
            if allowed[i, j]:
                total += features(q) @ features(k)
                y[i] += (turned(features(q), i) @ turned(features(k), j)) * value[j]
        y[i] /= total or 1.0
    return y


def performer(
    spec: PerformerSpec,
    module: nn.Module,
    head: int,
    query: Array,
    key: Array,
    value: Array,
    allowed: Array,
    turned: Turned,
) -> Array:
    directions = module.directions[head].double().numpy()

    def features(x: Array, place: int) -> Array:
        x = turned(x, place) / len(x) ** 0.25
        return np.array([math.exp(direction @ x - x @ x / 2) for direction in directions]) / math.sqrt(spec.features)

    y = np.zeros_like(query)
    for i, q in enumerate(query):
        weights = {j: features(q, i) @ features(k, j) for j, k in enumerate(key) if allowed[i, j]}
        for j, weight in weights.items():
            y[i] += weight / sum(weights.values()) * value[j]
    return y


def linformer(
    spec: LinformerSpec,
    module: nn.Module,
    head: int,
    query: Array,
    key: Array,
    value: Array,
    allowed: Array,
    turned: Turned,
) -> Array:
    real = [j for j in range(len(key)) if allowed[:, j].any()]
    own = head if spec.sharing == "none" else 0
    key_sums = module.key_sums[own].detach().double().numpy()
    value_sums = key_sums if spec.sharing == "keys_and_values" else module.value_sums[own].detach().double().numpy()
    y = np.zeros_like(query)
    for i, q in enumerate(query):
        weights, summed = [], []
        for p in range(spec.projected):
            k = sum((key_sums[p, place] * key[j] for place, j in enumerate(real)), np.zeros_like(q))
            summed.append(sum((value_sums[p, place] * value[j] for place, j in enumerate(real)), np.zeros_like(q)))
            weights.append(math.exp(q @ k / math.sqrt(len(q))))
        y[i] = sum(weight * v for weight, v in zip(weights, summed, strict=True)) / sum(weights)
    return y


HEADS = {LinearAttentionSpec: linear_attention, PerformerSpec: performer, LinformerSpec: linformer}
