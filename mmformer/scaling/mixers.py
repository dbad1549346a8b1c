"""Which mixers fit rows of a length into a memory: each in the place of a stack's own, measured without data."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.scaling.accelerator import as_on_an_accelerator
from mmformer.scaling.meter import Meter, Weightless
from mmformer.spec import concrete
from mmformer.types import AXES, Tokens

LONGEST = 4096
"""Rows are measured to this length; of longer ones it is told from it, as a sum of parts that grow with the length and
with its square."""

EVER = 2**40


class Fit(NamedTuple):
    """What a stack would be with a mixer."""

    mixer: str
    flops: float = 0.0  # of a row, forward and backward
    bytes: float = 0.0  # that the gradient of a row takes
    rows: int = 0  # how many of the length fit
    longest: int = 0  # the longest of which one fits; EVER: there is no end to it
    refused: str = ""  # why it cannot stand there


def fits(spec: StackSpec, length: int, causal: bool, bfloat16: bool, room: float) -> list[Fit]:
    """What every mixer would make of a stack, at rows of a length; the shortest computation first.

    Settings are those that mixers have by default, but for the heads of the stack's own. Positions and what the stack
    reads besides are left aside.

    Args:
        causal: whether a token may see itself and those before it alone.
        bfloat16: whether products are computed in it.
        room: bytes that there are for activations.
    """
    found = [_fit(spec, mixer, length, causal, bfloat16, room) for mixer in _candidates(spec)]
    return sorted(found, key=lambda fit: (bool(fit.refused), fit.flops))


def _candidates(spec: StackSpec) -> list[MixerSpec]:
    own = next((mixer for mixer in spec.mixers if hasattr(mixer, "heads")), AttentionSpec())
    made = []
    for kind in concrete(MixerSpec):
        has_heads = any(field.name == "heads" for field in dataclasses.fields(kind))
        made.append(kind(heads=own.heads) if has_heads else kind())
    return made


def _fit(spec: StackSpec, mixer: MixerSpec, length: int, causal: bool, bfloat16: bool, room: float) -> Fit:
    name = type(mixer).__name__
    layer = LayerSpec(mixer=mixer, feedforward=spec.layers[0].feedforward, norm=spec.layers[0].norm)
    needed: Ability = "causal" if causal else "bidirectional"
    if needed not in mixer.abilities:
        return Fit(name, refused=f"it is not {needed}")
    if mixer.longest is not None and mixer.longest < length:
        return Fit(name, refused=f"its rows have at most {mixer.longest:,} tokens")
    try:
        stack = StackSpec(spec.width, 1, layer, final_norm=False)
        at = min(length, LONGEST)
        (half_flops, half), (flops, most) = (
            _measured(stack, part, causal, bfloat16, spec.depth) for part in (at // 2, at)
        )
    except InputError as error:
        return Fit(name, refused=str(error))
    linear, square = _parts(at, half, most)
    taken = linear * length + square * length**2
    slower, faster = _parts(at, half_flops, flops)
    return Fit(
        name,
        slower * length + faster * length**2,
        taken,
        int(room // taken),
        _longest(linear, square, room) if mixer.longest is None else mixer.longest,
    )


def _parts(length: int, half: float, whole: float) -> tuple[float, float]:
    """a and b of a · length + b · length², from what is at half a length and at a whole one."""
    square = max(0.0, 2 * (whole - 2 * half) / length**2)
    return whole / length - square * length, square


def _longest(linear: float, square: float, room: float) -> int:
    if square * EVER < 1e-3 * linear:
        return int(room / linear)
    return int((math.sqrt(linear**2 + 4 * square * room) - linear) / (2 * square))


def _measured(spec: StackSpec, length: int, causal: bool, bfloat16: bool, depth: int) -> tuple[float, float]:
    """FLOPs and bytes of the gradient of a row, through as many layers as the stack has."""
    made = Weightless()
    stack: Stack = made.module(spec.build)
    side = math.isqrt(length) if not causal else 1
    place = torch.arange(length)
    pos = torch.stack([place // side, place % side, place * 0][:AXES], dim=-1)[None]  # 1 L A
    x = made.tensor(1, length, spec.width).requires_grad_()
    meter = Meter([*stack.parameters(), *stack.buffers(), x, pos])
    before = meter.live
    with as_on_an_accelerator(), meter, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = stack(Tokens(x, pos), causal=causal).tokens.x
        kept = meter.live - before
        y.sum().backward()
    # Gradients of parameters, which are there at the end, do not grow with the rows.
    gradients = sum(value.numel() * value.element_size() for value in stack.parameters())
    passing = max(0, meter.peak() - before - kept - gradients)
    return float(meter.flops * depth), float(kept * depth + passing)
