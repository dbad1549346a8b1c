"""What hashed attention means, as loops over queries, rounds and keys."""

from __future__ import annotations

import numpy as np
import torch

from mmformer.nn.lsh import LSHAttentionSpec


def hashed_attention(
    spec: LSHAttentionSpec, head: int, shared: np.ndarray, value: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    """One head of one sample.

    Args:
        shared: tokens, width of a head: queries and keys.
        value: tokens, width of a head.
        allowed: queries, keys: what the mask lets be seen.
    """
    length, width = shared.shape
    size = (spec.heads, width, spec.rounds * spec.buckets // 2)
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(spec.seed))[head].double().numpy()
    y = np.zeros_like(value)
    for i in range(length):
        if not allowed[i, i]:  # not valid: it sees nothing
            continue
        weights = np.zeros(length)
        for turned in np.split(drawn, spec.rounds, axis=1):
            directions = np.concatenate((turned, -turned), axis=1)  # one for each bucket
            bucket = [int(np.argmax(x @ directions)) for x in shared]
            alike = [
                j
                for j in range(length)
                # Of the same segment: where one may see the other.
                if allowed[j, j] and bucket[j] == bucket[i] and (allowed[i, j] or allowed[j, i])
            ]
            own = alike.index(i)
            for j in alike[max(0, own - spec.window) : own + spec.window + 1]:
                if j != i and allowed[i, j]:
                    weights[j] += np.exp(shared[i] @ shared[j] / np.linalg.norm(shared[j]))
        y[i] = weights @ value / weights.sum() if weights.any() else value[i]
    return y
