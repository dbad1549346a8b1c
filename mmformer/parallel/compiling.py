"""Compilation: each layer becomes a program of fused operations, which is made when the layer first runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mmformer.models.model import Model
from mmformer.nn.layer import Layer


def compile_layers(model: Model, **options: Any) -> None:
    """Compile a model's layers in place, each by itself, but those of reversible stacks, which run by halves.

    To be done before it is sharded: what FSDP2 does when a layer begins and ends is
    no part of the program. Parameters keep their names. Layers that go on from a state, as when decoding, run as they
    were: each of their lengths would be another program.

    Args:
        options: of ``torch.compile``.
    """
    for name, stack in model.spec.stacks.items():
        for layer in model.stack_of(name).layers if not stack.reversible else ():
            assert isinstance(layer, Layer), "a stack's layers"
            program = torch.compile(layer.forward, **options)
            layer.forward = partial(_run, layer.forward, program)  # type: ignore[method-assign]


def _run(
    plain: Callable[..., Any],
    program: Callable[..., Any],
    x: Any,
    view: Any,
    memory: Any,
    state: Any,
    drop_path: float = 0.0,
) -> Any:
    return (program if state is None else plain)(x, view, memory, state, drop_path)
