"""What Mamba means, as a loop over the tokens that one may see, in float64 and without torch.nn."""

from __future__ import annotations

import numpy as np
from position_reference import array
from torch import nn

from mmformer.nn.mamba import MambaSpec

Array = np.ndarray


def mamba(
    spec: MambaSpec,
    module: nn.Module,
    x: Array,
    memory: None,
    allowed: Array,
    turns: None = None,
    bias: None = None,
) -> tuple[Array, Array]:
    """What enters the last projection, and what leaves it."""
    assert memory is None and turns is None and bias is None
    batch, length, width = x.shape
    read, y = np.zeros((batch, length, spec.expand * width)), np.zeros_like(x)
    for b, i in np.ndindex(batch, length):
        seen = np.flatnonzero(allowed[b, i])
        if not len(seen):
            continue
        u, gate = np.split(projected(module.enter, x[b]), 2, axis=1)
        left = last_output(module.forwards, u[seen[seen <= i]])
        if spec.bidirectional:
            left = left + last_output(module.backwards, u[seen[seen >= i]][::-1])
        read[b, i] = left * silu(gate[i])
        y[b, i] = projected(module.out, read[b, i])
    return read, y


def last_output(part: nn.Module, u: Array) -> Array:
    """Of the last of some tokens, for what entered: tokens E -> E."""
    kernel, decay = array(part.kernel), -np.exp(array(part.log_decay))  # taps E, E N
    offset = 0.0 if part.kernel_bias is None else array(part.kernel_bias)
    states, rank = decay.shape[1], part.step.shape[1]
    h, y = np.zeros_like(decay), np.zeros(len(decay))
    norms = part.norms or ()
    for t in range(len(u)):
        taps = [kernel[-1 - back] * u[t - back] for back in range(min(len(kernel), t + 1))]
        v = silu(sum(taps) + offset)
        chosen = projected(part.select, v)
        low, b, c = chosen[:rank], chosen[rank : rank + states], chosen[rank + states :]
        if norms:
            low, b, c = (
                each / np.sqrt((each**2).mean() + norm.eps) * array(norm.weight)
                for norm, each in zip(norms, (low, b, c), strict=True)
            )
        step = np.log1p(np.exp(array(part.step) @ low + array(part.step_bias)))
        h = np.exp(step[:, None] * decay) * h + (step * v)[:, None] * b[None, :]
        y = h @ c + array(part.skip) * v
    return y


def projected(module: nn.Linear, x: Array) -> Array:
    y = x @ array(module.weight).T
    return y if module.bias is None else y + array(module.bias)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))
