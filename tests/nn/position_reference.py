"""What the positions mean, written as loops over one token or one pair of tokens, in float64; for ``nn_reference.py``.

It shares nothing with mmformer.nn but the parameters and the specs. A new position enters its meaning into one of the
tables at the end.
"""

from __future__ import annotations

import cmath
import math

import numpy as np
from torch import Tensor, nn

from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec
from mmformer.nn.position import LearnedPositionSpec, SinusoidalPositionSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.rotary_scaling import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    NTKScalingSpec,
    RotaryScalingSpec,
    YaRNScalingSpec,
)

Array = np.ndarray


def array(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


# What is added to a token


def learned(spec: LearnedPositionSpec, module: nn.Module, place: Array, width: int) -> Array:
    table = array(module.weight)
    if place[0] < 0:
        number = -1 - int(place[0])
        return table[number] if number < spec.special else np.zeros(width)
    grid = table[spec.special :].reshape(*(spec.learned or spec.sizes), width)
    if spec.learned is not None:
        for axis, (old, new) in enumerate(zip(spec.learned, spec.sizes, strict=True)):
            grid = np.moveaxis(np.tensordot(resampling(old, new, len(spec.axes) == 2), grid, (1, axis)), 0, axis)
    return grid[tuple(place[list(spec.axes)])]


def resampling(old: int, new: int, cubic: bool) -> Array:
    """new old: how much of each old place is in each new one, as PIL resizes pictures."""

    def weight(x: float) -> float:
        x = abs(x)
        if not cubic:
            return max(0.0, 1 - x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    widened = max(1.0, old / new)
    matrix = np.array([[weight((j + 0.5 - (i + 0.5) * old / new) / widened) for j in range(old)] for i in range(new)])
    return matrix / matrix.sum(axis=1, keepdims=True)


def sinusoidal(spec: SinusoidalPositionSpec, module: nn.Module, place: Array, width: int) -> Array:
    if place[0] < 0:
        return np.zeros(width)
    share, wave = width // len(spec.axes), []
    for axis in spec.axes:
        rates = [spec.base ** (-2 * k / share) for k in range(share // 2)]
        wave += [math.sin(place[axis] * rate) for rate in rates] + [math.cos(place[axis] * rate) for rate in rates]
    return np.array(wave)


# What the pairs of features of a head are multiplied by, as complex numbers


def rotary(spec: RotaryPositionSpec, module: nn.Module, place: Array, head: int, head_width: int) -> list[complex]:
    count = int(head_width * spec.fraction) // (2 * len(spec.axes))
    rates, gain = scaled_rates(spec.scaling, spec.base, count)
    steps = [0 if place[axis] < 0 else place[axis] for axis in spec.axes]
    return [gain * cmath.exp(1j * step * rate) for step in steps for rate in rates]


def mixed_rotary(
    spec: MixedRotaryPositionSpec, module: nn.Module, place: Array, head: int, head_width: int
) -> list[complex]:
    steps = [0 if place[axis] < 0 else place[axis] for axis in spec.axes]
    rates = array(module.rate)[:, head]
    return [cmath.exp(1j * (steps[0] * rates[0, k] + steps[1] * rates[1, k])) for k in range(head_width // 2)]


def scaled_rates(scaling: RotaryScalingSpec | None, base: float, count: int) -> tuple[list[float], float]:
    """The rates of a head's pairs, and the gain on its features, from the papers' formulas."""
    width, rates = 2 * count, [base ** (-k / count) for k in range(count)]
    match scaling:
        case None:
            return rates, 1.0
        case LinearScalingSpec(factor):
            return [rate / factor for rate in rates], 1.0
        case NTKScalingSpec(factor):
            base *= factor ** (width / (width - 2))
            return [base ** (-k / count) for k in range(count)], 1.0
        case Llama3ScalingSpec(factor, length, fast, slow):
            return [llama3_rate(rate, factor, length, fast, slow) for rate in rates], 1.0
        case YaRNScalingSpec(factor, length, fast, slow, gain):
            low, high = (width * math.log(length / (t * 2 * math.pi)) / (2 * math.log(base)) for t in (fast, slow))
            low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
            ramps = [min(1.0, max(0.0, (k - low) / ((high - low) or 0.001))) for k in range(count)]
            blended = [rate / factor * ramp + rate * (1 - ramp) for rate, ramp in zip(rates, ramps, strict=True)]
            return blended, 0.1 * math.log(factor) + 1 if gain is None else gain
    raise AssertionError(f"Write the meaning of {type(scaling).__name__} here.")


def llama3_rate(rate: float, factor: float, length: int, fast: float, slow: float) -> float:
    wave = 2 * math.pi / rate
    if wave < length / fast:
        return rate
    if wave > length / slow:
        return rate / factor
    smooth = (length / wave - slow) / (fast - slow)
    return (1 - smooth) * rate / factor + smooth * rate


# The bias between two tokens


def alibi(spec: ALiBiPositionSpec, module: nn.Module, heads: int, head: int, query: Array, key: Array) -> float:
    if query[0] < 0 or key[0] < 0:
        return 0.0
    apart = [abs(float(query[axis] - key[axis])) for axis in spec.axes]
    return -alibi_slopes(heads)[head] * (math.hypot(*apart) if spec.metric == "euclidean" else sum(apart))


def alibi_slopes(heads: int) -> list[float]:
    """``get_slopes`` of the paper's code."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start**i for i in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(closest) + alibi_slopes(2 * closest)[0::2][: heads - closest]


def bucketed(
    spec: RelativeBucketPositionSpec, module: nn.Module, heads: int, head: int, query: Array, key: Array
) -> float:
    if query[0] < 0 or key[0] < 0:
        return 0.0
    return float(array(module.weight)[t5_bucket(spec, int(key[spec.axis] - query[spec.axis])), head])


def t5_bucket(spec: RelativeBucketPositionSpec, ahead: int) -> int:
    buckets, first, distance = spec.buckets, 0, max(0, -ahead)
    if spec.bidirectional:
        buckets, distance = buckets // 2, abs(ahead)
        first = buckets if ahead > 0 else 0
    exact = buckets // 2
    if distance < exact:
        return first + distance
    near_to_far = math.log(distance / exact) / math.log(spec.max_distance / exact)
    return first + min(buckets - 1, exact + int(near_to_far * (buckets - exact) + 1e-6))


def grid(spec: RelativeGridPositionSpec, module: nn.Module, heads: int, head: int, query: Array, key: Array) -> float:
    table = array(module.weight)[:, head]
    if query[0] < 0 or key[0] < 0:
        return float(table[-1 if max(query[0], key[0]) < 0 else -3 if query[0] < 0 else -2])
    down, right = (int(key[axis] - query[axis]) for axis in spec.axes)
    offsets = table[:-3].reshape(2 * spec.sizes[0] - 1, 2 * spec.sizes[1] - 1)
    return float(offsets[down + spec.sizes[0] - 1, right + spec.sizes[1] - 1])


EMBEDDINGS = {LearnedPositionSpec: learned, SinusoidalPositionSpec: sinusoidal}
ROTATIONS = {RotaryPositionSpec: rotary, MixedRotaryPositionSpec: mixed_rotary}
BIASES = {ALiBiPositionSpec: alibi, RelativeBucketPositionSpec: bucketed, RelativeGridPositionSpec: grid}
