"""What the parts mean, written as loops over samples, heads, queries and keys, in float64 and without torch.nn.

Slow and plain on purpose; it shares nothing with mmformer.nn but the parameters and the specs. A new mixer,
norm enters its meaning into the table at the end; positions and feed-forwards have files of their own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from contract import Inputs
from convolution_reference import MIXERS as CONVOLUTIONS
from convolution_reference import tap
from everywhere_reference import global_attention
from feedforward_reference import FEEDFORWARDS
from linear_reference import HEADS
from lsh_reference import hashed_attention
from mamba_reference import mamba
from position_reference import BIASES, EMBEDDINGS, ROTATIONS, array
from shaw_reference import shaw
from torch import Tensor, nn

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.block_sparse import BlockSparseSpec
from mmformer.nn.convolution import DepthwiseSpec
from mmformer.nn.everywhere import EverywhereSpec, GlobalAttentionSpec
from mmformer.nn.feedforward import FeedForwardSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.pattern import (
    AllOfSpec,
    AnyOfSpec,
    ChunksSpec,
    GlobalSpec,
    NeighbourhoodSpec,
    PatternSpec,
    StridedSpec,
    WindowSpec,
)
from mmformer.nn.position import PositionSpec
from mmformer.nn.random_blocks import RandomBlocksSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import Stack

Array = np.ndarray
Turns = list[list[list[list[complex]]]]  # sample, head, token, rotated pair of features -> what multiplies it


def linear(module: nn.Linear, x: Array, rows: slice = slice(None)) -> Array:
    """x through some of the outputs of a projection."""
    y = x @ array(module.weight)[rows].T
    return y if module.bias is None else y + array(module.bias)[rows]


def visibility(inputs: Inputs, mixer: MixerSpec | None = None) -> Array:
    """B queries keys: whether a query sees a key, from the words of the documentation, or how many times over; of a
    convolution, by which of its weights.
    """
    batch, length, _ = inputs.tokens.x.shape
    pattern, pos = getattr(mixer, "pattern", None), inputs.tokens.pos.tolist()
    valid, segment = _listed(inputs.tokens.valid), _listed(inputs.tokens.segment)
    prefix = [0] * batch if inputs.prefix is None else inputs.prefix.tolist()

    def visible(b: int, i: int, j: int) -> bool | int:
        if inputs.causal and j > i and j >= prefix[b]:
            return False
        if valid is not None and not valid[b][j]:
            return False
        if segment is not None and segment[b][i] != segment[b][j]:
            return False
        if isinstance(mixer, DepthwiseSpec):
            here, there = ((order(b, at), pos[b][at]) for at in (i, j))
            return tap(mixer, i == j, here, there) if valid is None or valid[b][i] else 0
        if isinstance(mixer, MambaSpec) and valid is not None and not valid[b][i]:
            return False
        return pattern is None or pattern_allows(pattern, order(b, i), order(b, j), pos[b][i], pos[b][j], total(b, i))

    def order(b: int, i: int) -> int:
        """How many real tokens of its segment stand before it."""
        return sum(beside(b, i, k) for k in range(i))

    def total(b: int, i: int) -> int:
        """How many it has in all."""
        return sum(beside(b, i, k) for k in range(length))

    def beside(b: int, i: int, k: int) -> bool:
        return (segment is None or segment[b][k] == segment[b][i]) and (valid is None or valid[b][k])

    return np.array([[[visible(b, i, j) for j in range(length)] for i in range(length)] for b in range(batch)])


def pattern_allows(pattern: PatternSpec, i: int, j: int, here: list[int], there: list[int], length: int) -> bool | int:
    """Whether the i-th token of a row may see the j-th, which stand here and there, or how many times over."""
    match pattern:
        case BlockSparseSpec(size, whole, first):
            own, seen, ends = i // size, j // size, {0, (length - 1) // size}
            if length <= whole or own in ends:
                return 1
            return first if seen == 0 else int(seen in ends or abs(own - seen) <= 1)
        case WindowSpec(before, after, step):
            return j in range(i - before * step, i + after * step + 1, step)
        case ChunksSpec(size):
            return i // size == j // size
        case GlobalSpec(tokens):
            return i < tokens or j < tokens
        case EverywhereSpec():
            return here[2] < 0 or there[2] < 0
        case StridedSpec(stride):
            return (i - j) % stride == 0
        case RandomBlocksSpec(size, blocks, seed):
            own = i // size
            draws = [_finalised(own, draw, seed) % (own + 1) for draw in range(2 * blocks)]
            return j // size in {own + 1 + value if draw % 2 else value for draw, value in enumerate(draws)}
        case NeighbourhoodSpec(rows, columns, axes):
            if here[0] < 0 or there[0] < 0:
                return True
            return all(abs(here[a] - there[a]) <= reach for a, reach in zip(axes, (rows, columns), strict=True))
        case AllOfSpec(patterns):
            return all(pattern_allows(each, i, j, here, there, length) for each in patterns)
        case AnyOfSpec(patterns):
            return any(pattern_allows(each, i, j, here, there, length) for each in patterns)
    raise AssertionError(f"Write the meaning of {type(pattern).__name__} here.")


def _finalised(x: int, draw: int, seed: int) -> int:
    h = (x * 2654435761 + draw * 2246822507 + seed * 3266489909 + 668265263) % 2**31
    for shift, factor in ((15, 739982445), (12, 695872825)):
        h = ((h ^ (h >> shift)) * factor) % 2**31
    return h ^ (h >> 15)


def memory_visibility(inputs: Inputs) -> Array:
    """B queries memory: the same for what is read."""
    assert inputs.memory is not None
    batch, length, _ = inputs.tokens.x.shape
    valid, segment = _listed(inputs.memory.valid), _listed(inputs.tokens.segment)
    keys, memory_segment = range(inputs.memory.x.shape[1]), _listed(inputs.memory.segment)

    def visible(b: int, i: int, j: int) -> bool:
        if valid is not None and not valid[b][j]:
            return False
        return segment is None or memory_segment is None or segment[b][i] == memory_segment[b][j]

    return np.array([[[visible(b, i, j) for j in keys] for i in range(length)] for b in range(batch)])


def _listed(x: Tensor | None) -> list | None:
    return None if x is None else x.tolist()


# Norms: (spec, parameters, vector) -> vector


def layer_norm(spec: LayerNormSpec, module: nn.Module, x: Array) -> Array:
    centred = x - x.mean()
    y = centred / math.sqrt((centred**2).mean() + spec.eps) * array(module.weight)
    return y + array(module.bias) if spec.bias else y


def rms_norm(spec: RMSNormSpec, module: nn.Module, x: Array) -> Array:
    return x / math.sqrt((x**2).mean() + spec.eps) * array(module.weight)


def turn(x: Array, turns: list[complex]) -> Array:
    """Features i and i + len(turns) as one complex number, multiplied by another."""
    y, half = x.copy(), len(turns)
    for i, factor in enumerate(turns):
        z = complex(x[i], x[i + half]) * factor
        y[i], y[i + half] = z.real, z.imag
    return y


# Mixers: (spec, module, x, memory, allowed, turns, bias) -> (what the heads join to, y)


def attention(
    spec: AttentionSpec,
    module: nn.Module,
    x: Array,
    memory: Array | None,
    allowed: Array,
    turns: Turns | None = None,
    bias: Callable[[int, int, int, int], float] | None = None,
) -> tuple[Array, Array]:
    batch, _, width = x.shape
    size, groups = spec.head_width or width // spec.heads, spec.key_value_heads or spec.heads
    joined = np.zeros((*x.shape[:2], spec.heads * size))
    scale = 1 / math.sqrt(size) if spec.scale is None else spec.scale
    for b in range(batch):
        for head in range(spec.heads):
            group = head // (spec.heads // groups)
            q_rows = slice(head * size, (head + 1) * size)
            k_rows = slice(group * size, (group + 1) * size)
            if memory is None:
                source, projection, at = x[b], module.qkv, spec.heads * size
                queries = linear(module.qkv, x[b], q_rows)
            else:
                source, projection, at = memory[b], module.kv, 0
                queries = linear(module.q, x[b], q_rows)
            offset = slice(at + k_rows.start, at + k_rows.stop)
            keys = linear(projection, source, offset)
            offset = slice(offset.start + groups * size, offset.stop + groups * size)
            values = linear(projection, source, offset)
            if spec.qk_norm:
                gain_of_q, gain_of_k = array(module.query_norm.weight), array(module.key_norm.weight)
                queries = [q / math.sqrt((q @ q) / size + 1e-6) * gain_of_q for q in queries]
                keys = [k / math.sqrt((k @ k) / size + 1e-6) * gain_of_k for k in keys]
            if turns is not None:
                queries = [turn(q, turns[b][head][i]) for i, q in enumerate(queries)]
                keys = [turn(k, turns[b][head][j]) for j, k in enumerate(keys)]
            for i, q in enumerate(queries):
                scores = {}
                for j, k in enumerate(keys):
                    if allowed[b, i, j]:
                        scores[j] = allowed[b, i, j] * math.exp(q @ k * scale + (bias(b, head, i, j) if bias else 0.0))
                for j, score in scores.items():
                    joined[b, i, q_rows] += score / sum(scores.values()) * values[j]
    return joined, linear(module.out, joined)


def hashed(
    spec: LSHAttentionSpec,
    module: nn.Module,
    x: Array,
    memory: Array | None,
    allowed: Array,
    turns: Turns | None = None,
    bias: None = None,
) -> tuple[Array, Array]:
    assert memory is None and bias is None
    width, size, joined = x.shape[2], x.shape[2] // spec.heads, np.zeros_like(x)
    for b, row in enumerate(x):
        for head in range(spec.heads):
            part = slice(head * size, (head + 1) * size)
            shared = linear(module.shared_value, row, part)
            value = linear(module.shared_value, row, slice(width + part.start, width + part.stop))
            if turns is not None:
                shared = np.array([turn(q, turns[b][head][i]) for i, q in enumerate(shared)])
            joined[b, :, part] = hashed_attention(spec, head, shared, value, allowed[b])
    return joined, linear(module.out, joined)


def by_head(
    spec: MixerSpec,
    module: nn.Module,
    x: Array,
    memory: Array | None,
    allowed: Array,
    turns: Turns | None = None,
    bias: None = None,
) -> tuple[Array, Array]:
    assert bias is None
    width, size, joined = x.shape[2], x.shape[2] // spec.heads, np.zeros_like(x)
    source, into, at = (x, module.qkv, width) if memory is None else (memory, module.kv, 0)
    for b in range(len(x)):
        for head in range(spec.heads):
            part = slice(head * size, (head + 1) * size)
            query = linear(module.qkv if memory is None else module.q, x[b], part)
            key = linear(into, source[b], slice(at + part.start, at + part.stop))
            value = linear(into, source[b], slice(at + width + part.start, at + width + part.stop))

            def turned(vector: Array, place: int, b: int = b, head: int = head) -> Array:
                return vector if turns is None else turn(vector, turns[b][head][place])

            attend = HEADS[type(spec)]
            joined[b, :, part] = attend(spec, module, head, query, key, value, allowed[b], turned)
    return joined, linear(module.out, joined)


NORMS = {LayerNormSpec: layer_norm, RMSNormSpec: rms_norm}
POSITIONS = {PositionSpec, *EMBEDDINGS, *ROTATIONS, *BIASES}
MIXERS = {
    **CONVOLUTIONS,
    AttentionSpec: attention,
    LSHAttentionSpec: hashed,
    **dict.fromkeys(HEADS, by_head),
    ShawAttentionSpec: shaw,
    GlobalAttentionSpec: global_attention,
    MambaSpec: mamba,
}


def per_token(function: Callable, *arguments: object) -> Callable[[Array], Array]:
    return lambda x: np.array([[function(*arguments, token) for token in row] for row in x])


def fed(spec: FeedForwardSpec, module: nn.Module, valid: Tensor | None) -> Callable[[Array], Array]:
    return lambda x: FEEDFORWARDS[type(spec)](spec, module, x, None if valid is None else valid.numpy())


def mixed(spec: MixerSpec, module: nn.Module, *arguments: object) -> Callable[[Array], Array]:
    return lambda x: MIXERS[type(spec)](spec, module, x, *arguments)[1]


def stack_output(stack: Stack, inputs: Inputs) -> Array:
    """The whole stack: positions, residual branches in each placement, norms at both ends."""
    spec, layer_spec = stack.spec, stack.spec.layer
    x, pos = array(inputs.tokens.x), inputs.tokens.pos.numpy()
    width = x.shape[-1]
    where, at = type(spec.position), spec.position
    if where in EMBEDDINGS:
        x = x + np.array([[EMBEDDINGS[where](at, stack.position, place, width) for place in row] for row in pos])
    turns = bias = None
    heads = layer_spec.mixer.heads_of(width)
    if where in ROTATIONS:
        turn_of = functools.partial(ROTATIONS[where], at, stack.position)
        turns = [[[turn_of(place, h, heads.width) for place in row] for h in range(heads.number)] for row in pos]
    if where in BIASES:

        def bias(b: int, head: int, i: int, j: int) -> float:
            return BIASES[where](at, stack.position, heads.number, head, pos[b, i], pos[b, j])

    allowed, memory_allowed, memory = visibility(inputs, layer_spec.mixer), None, None
    if inputs.memory is not None:
        memory, memory_allowed = array(inputs.memory.x), memory_visibility(inputs)

    def normed(module: nn.Module) -> Callable[[Array], Array]:
        return per_token(NORMS[type(layer_spec.norm)], layer_spec.norm, module)

    def branch(x: Array, residual: nn.Module, f: Callable[[Array], Array], entered: Array | None = None) -> Array:
        gain, skip = 1.0 if layer_spec.layer_scale is None else array(residual.gain), layer_spec.skip_scale
        gain = gain * layer_spec.branch_scale
        if layer_spec.gated:
            gain = gain * np.tanh(array(residual.gate))
        if layer_spec.placement == "deep":  # α of all branches, two or three a layer
            branches = 1 + (layer_spec.feedforward is not None) + (layer_spec.cross is not None)
            skip = (spec.depth * branches) ** 0.25
        if entered is not None:
            return x + gain * f(entered)
        norm = normed(residual.norm)
        if layer_spec.placement in ("post", "deep"):
            return norm(skip * x + gain * f(x))
        y = f(norm(x))
        return skip * x + gain * (normed(residual.inner_norm)(y) if layer_spec.placement == "sandwich" else y)

    if spec.input_norm:
        x = normed(stack.input_norm)(x)
    for time, index in enumerate(spec.applied):
        layer = stack.layers[index]
        if spec.sharing is not None and spec.sharing.step_signal:
            waves = [(time + 1) / 10_000 ** (2 * i / width) for i in range(width // 2)]
            x = x + np.array([*map(math.sin, waves), *map(math.cos, waves)])
        entered = normed(layer.mixer_residual.norm)(x) if layer_spec.parallel else None
        if isinstance(layer_spec.mixer, GlobalAttentionSpec):
            turns = pos[..., 2] < 0  # which tokens stand everywhere; it has none
        mixer = mixed(layer_spec.mixer, layer.mixer, None, allowed, turns, bias)
        x = branch(x, layer.mixer_residual, mixer)
        if layer.cross is not None:
            reader = mixed(layer_spec.cross, layer.cross, memory, memory_allowed)
            x = branch(x, layer.cross_residual, reader)
        if layer.feedforward is not None:
            f = fed(layer_spec.feedforward, layer.feedforward, inputs.tokens.valid)
            x = branch(x, layer.feedforward_residual, f, entered)
    if spec.final_norm:
        x = normed(stack.norm)(x)
    return x
