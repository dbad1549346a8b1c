"""Activation checkpointing: what layers make on the way is not kept for the gradient but computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from mmformer.errors import InputError
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.everywhere import GlobalAttentionSpec
from mmformer.nn.layer import Layer, LayerState
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.mixer import View
from mmformer.nn.stack import Stack
from mmformer.spec import require
from mmformer.types import Aux

ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""What softmax attention comes down to, in one operation, on one device or another; where it does not, see ``keep``."""

SOFTMAX = (AttentionSpec, GlobalAttentionSpec, LinformerSpec)
"""Mixers that are made of it."""

KEPT: dict[str, frozenset[Any]] = {
    "nothing": frozenset(),
    "attention": frozenset(getattr(torch.ops.aten, name).default for name in ATTENTION),
}
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.mmformer.grouped_linear.default)
KEPT["products"] = KEPT["attention"] | frozenset(PRODUCTS)
"""Operations whose results are kept."""


@dataclass(frozen=True)
class ActivationCheckpointingSpec:
    """Layers whose activations are computed again in the backward pass (Chen et al. 2016, Training deep nets with
    sublinear memory cost). The gradient is the same to the bit, and takes more time and less memory.

    Attributes:
        every: one of so many layers of each stack is computed again, the first among them.
        keep: what of such a layer is kept besides its input. ``nothing``: the least memory, about a third more time;
            ``attention``: what softmax attention gave, which costs little memory and much time in long rows;
            ``products``: that and what linear maps gave, so that only what is cheap is computed again. Attention is
            computed again nevertheless where it is more than one operation: on GPUs, in sparse patterns; on CPUs, with
            dropout on its weights, with biases that are learned, and in bfloat16 over rows of at most 512 tokens.
    """

    every: int = 1
    keep: Literal["nothing", "attention", "products"] = "nothing"

    def __post_init__(self) -> None:
        require(self.every >= 1, self, "every", "at least 1")
        require(self.keep in KEPT, self, "keep", "'nothing', 'attention' or 'products'")


def check_kept(model: ModelSpec, spec: ActivationCheckpointingSpec) -> None:
    """Refuse to keep what attention gave where there is none.

    Raises:
        InputError: what to keep instead.
    """
    layers = [layer for stack in model.stacks.values() if not stack.reversible for layer in stack.layers]
    parts = [part for layer in layers for part in (layer.mixer, layer.cross)]
    if spec.keep == "attention" and not any(isinstance(part, SOFTMAX) for part in parts):
        raise InputError(
            "parallel.activation_checkpointing.keep is attention, but no layer that is computed again has softmax "
            "attention: set it to nothing, or to products."
        )


class CheckpointedLayer(Layer):
    """What a layer becomes, in place: its parameters keep their names."""

    contexts: Callable[[], Any]
    computed = Layer.forward  # what is computed, and computed again; or the program that it is compiled to

    def forward(
        self,
        x: Tensor,
        view: View,
        memory: View | None,
        state: LayerState | None,
        drop_path: float = 0.0,
        read: Tensor | None = None,
    ) -> tuple[Tensor, LayerState | None, Aux]:
        if state is not None or not torch.is_grad_enabled():
            return super().forward(x, view, memory, state, drop_path, read)
        made: tuple[Tensor, None, Aux] = checkpoint(
            self.computed, x, view, memory, None, drop_path, read, use_reentrant=False, context_fn=self.contexts
        )
        return made


def checkpoint_layers(model: Model, spec: ActivationCheckpointingSpec) -> None:
    """Have a model's layers compute their activations again, but those of reversible stacks, which keep none.

    To be done before it is sharded.
    """
    for stack in model.stacks.values():
        assert isinstance(stack, Stack), "a model's stacks"
        if not stack.spec.reversible:
            checkpoint_stack(stack, spec)


def checkpoint_stack(stack: Stack, spec: ActivationCheckpointingSpec) -> None:
    """Have a stack's layers compute their activations again."""
    kept = KEPT[spec.keep]
    selective = partial(create_selective_checkpoint_contexts, partial(_keeps, kept))
    for layer in list(stack.layers)[:: spec.every]:
        assert type(layer) is Layer, "it is done once, and first"
        layer.__class__ = CheckpointedLayer
        assert isinstance(layer, CheckpointedLayer)
        layer.contexts = selective if kept else noop_context_fn


def _keeps(kept: frozenset[Any], _: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE
