"""What depthwise convolutions mean, as loops: which weight a token reads another one by, and what it makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from mmformer.nn.convolution import ConvolutionSpec, DepthwiseSpec, GridConvolutionSpec

Array = np.ndarray
Place = tuple[int, list[int]]  # how many real tokens of its segment stand before it, and its coordinates


def array(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def tap(spec: DepthwiseSpec, same: bool, here: Place, there: Place) -> int:
    """The number of the weight, counted from 1, that a token reads another one by; 0: none."""
    match spec:
        case ConvolutionSpec():
            for step in range(-spec.before, spec.after + 1):
                if there[0] == here[0] + step * spec.dilation:
                    return spec.before + step + 1
        case GridConvolutionSpec():
            number = 0
            for down in range(-spec.rows, spec.rows + 1):
                for right in range(-spec.columns, spec.columns + 1):
                    number += 1
                    wanted = list(here[1])
                    wanted[spec.axes[0]] += down * spec.dilation
                    wanted[spec.axes[1]] += right * spec.dilation
                    moved = down != 0 or right != 0
                    if (there[1] == wanted and min(there[1]) >= 0) if moved else same:
                        return number
    return 0


def depthwise(
    spec: DepthwiseSpec,
    module: nn.Module,
    x: Array,
    memory: None,
    taps: Array,
    turns: None = None,
    bias: None = None,
) -> tuple[Array, Array]:
    """Args: taps: B queries keys, the number of each weight."""
    assert memory is None and turns is None and bias is None

    def projected(layer: nn.Linear | None, x: Array) -> Array:
        if layer is None:
            return x
        return x @ array(layer.weight).T + (array(layer.bias) if spec.bias else 0.0)

    hidden = projected(module.up, x)
    if spec.gated:
        value, gate = np.split(hidden, 2, axis=-1)
        hidden = value / (1 + np.exp(-gate))
    weight = array(module.kernel.weight).reshape(hidden.shape[2], -1)
    y = np.zeros_like(hidden)
    for b, i, j in np.ndindex(taps.shape):
        if taps[b, i, j]:
            y[b, i] += weight[:, taps[b, i, j] - 1] * hidden[b, j]
    y = y + array(module.kernel.bias) if spec.bias else y
    for b, i in np.ndindex(y.shape[:2]):
        y[b, i] = activated(spec, normed(spec, module, y[b, i]))
    return hidden, projected(module.down, y)


def normed(spec: DepthwiseSpec, module: nn.Module, x: Array) -> Array:
    if spec.norm is None:
        return x
    centred = x - x.mean()
    return centred / math.sqrt((centred**2).mean() + spec.norm.eps) * array(module.norm.weight) + array(
        module.norm.bias
    )


def activated(spec: DepthwiseSpec, x: Array) -> Array:
    kinds: dict[str | None, Callable[[float], float]] = {
        None: lambda v: v,
        "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
        "silu": lambda v: v / (1 + math.exp(-v)),
    }
    return np.array([kinds[spec.activation](value) for value in x])


MIXERS = {ConvolutionSpec: depthwise, GridConvolutionSpec: depthwise}
