"""Compilation: each layer becomes a program of fused operations, which is made when the layer first runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch

from mmformer.models.model import Model
from mmformer.nn.layer import Layer
from mmformer.parallel.checkpointing import CheckpointedLayer

PROGRAMS = 256
"""Most programs of layers. PyTorch makes eight of a function, and runs it as it is after that; but all layers are one
function to it, with programs for each kind of layer, in training and out of it, and for rows of other lengths."""


def compile_layers(model: Model, **options: Any) -> None:
    """Compile a model's layers in place, each by itself, but those of reversible stacks, which run by halves.

    To be done before it is sharded, and after activation checkpointing: what FSDP2 does when a layer begins and ends is
    no part of the program, and a program whose activations are not kept runs again. Parameters keep their names. Layers
    that go on from a state, as when decoding, run as they were: each of their lengths would be another program.

    Args:
        options: of ``torch.compile``.
    """
    from torch._dynamo import config  # takes a while to import

    config.recompile_limit = PROGRAMS
    for name, stack in model.spec.stacks.items():
        for layer in model.stack_of(name).layers if not stack.reversible else ():
            assert isinstance(layer, Layer), "a stack's layers"
            program = torch.compile(MethodType(Layer.forward, layer), **options)
            if isinstance(layer, CheckpointedLayer):
                layer.computed = program  # type: ignore[method-assign]
            else:
                layer.forward = partial(_run, layer.forward, program)  # type: ignore[method-assign]


def _run(
    plain: Callable[..., Any],
    program: Callable[..., Any],
    x: Any,
    view: Any,
    memory: Any,
    state: Any,
    drop_path: float = 0.0,
    read: Any = None,
) -> Any:
    return (program if state is None else plain)(x, view, memory, state, drop_path, read)
