"""What one of several tensor-parallel processes computes, as a model of its own: its heads and hidden units alone."""

from __future__ import annotations

from torch import Tensor, nn

from mmformer.models.model import Model
from mmformer.nn.attention import Attention
from mmformer.nn.feedforward import FeedForward, GatedFeedForward, PlainFeedForward
from mmformer.nn.layer import Layer
from mmformer.nn.mixer import State, View
from mmformer.nn.position import Rotary
from mmformer.nn.stack import Stack
from mmformer.parallel.dividing import shares_out
from mmformer.scaling.meter import Weightless
from mmformer.types import Aux


def take_part(model: Model, tensor: int, made: Weightless) -> None:
    """Leave the first of so many processes' share of a model in place: ``parallel/tensor.py`` without others."""
    for stack in model.stacks.values():
        assert isinstance(stack, Stack), "a model's stacks"
        specs = dict(zip(stack.spec.applied, stack.spec.layers, strict=True))
        for index, layer in enumerate(stack.layers):
            assert isinstance(layer, Layer), "a stack's layers"
            for part, module in ((specs[index].mixer, layer.mixer), (specs[index].cross, layer.cross)):
                if shares_out(part, stack.spec):
                    assert isinstance(module, Attention)
                    _cut(module, [name for name in ("qkv", "q", "kv") if hasattr(module, name)], "out", tensor, made)
                    module.heads //= tensor
                    module.key_value_heads //= tensor
                    module.__class__ = PartOfAttention
            if shares_out(specs[index].feedforward, stack.spec):
                assert isinstance(layer.feedforward, FeedForward)
                assert isinstance(layer.feedforward, PlainFeedForward | GatedFeedForward)
                rows = "gate_up" if isinstance(layer.feedforward, GatedFeedForward) else "up"
                _cut(layer.feedforward, [rows], "down", tensor, made)


class PartOfAttention(Attention):
    """Attention with the first heads alone, whose tables of positions are of all."""

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        bias = None if view.bias is None else self._of_heads(view.bias)
        rotary = None if view.rotary is None else Rotary(*map(self._of_heads, view.rotary))
        view = view._replace(bias=bias, lowered=view.lowered if bias is None else None, rotary=rotary)
        return super().forward(x, view, state, keep)

    def _of_heads(self, table: Tensor) -> Tensor:
        return table if table.shape[1] == 1 else table.narrow(1, 0, self.heads)


def _cut(module: nn.Module, rows: list[str], columns: str, parts: int, made: Weightless) -> None:
    """Keep a part of the outputs of some linear maps, and of the inputs of another."""
    for name in (*rows, columns):
        old = module.get_submodule(name)
        assert isinstance(old, nn.Linear)
        inputs, outputs = old.in_features, old.out_features
        sizes = (inputs // parts, outputs) if name == columns else (inputs, outputs // parts)
        bias = old.bias is not None
        setattr(module, name, made.module(lambda sizes=sizes, bias=bias: nn.Linear(*sizes, bias=bias)))  # type: ignore[misc]
