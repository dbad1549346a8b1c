"""What is carried from one id to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mmformer.nn.cache import KeyValue
from mmformer.nn.layer import LayerState
from mmformer.nn.state import StackState


class Progress(NamedTuple):
    """What is carried from one id to the next."""

    stack: StackState
    lengths: Tensor  # B, int64: ids so far, bos with them

    def take(self, rows: Tensor, inputs: Tensor | None = None) -> Progress:
        """The same over some texts, which may be there several times. This one is used up: what it held is moved.

        Args:
            inputs: those that stay; each has as many texts, which follow one another. None: all, and what was made of
                what they read is not copied: a row then takes the place of another of its own input.
        """

        def layer(state: LayerState) -> LayerState:
            cross = state.cross if inputs is None else take(state.cross, inputs)
            return LayerState(take(state.mixer, rows), cross)

        layers = tuple(layer(state) for state in self.stack.layers)
        rest = take(self.stack._replace(layers=()), rows)
        return Progress(rest._replace(layers=layers), self.lengths.index_select(0, rows))


def take(value: Any, rows: Tensor) -> Any:
    """Rows of every tensor in a tree of tuples and dictionaries; the batch is each tensor's first axis.

    Keys and values that grow are used up (``KeyValue.take``).
    """
    if isinstance(value, KeyValue):
        return value.take(rows)
    if isinstance(value, Tensor):
        return value.index_select(0, rows)
    if isinstance(value, dict):
        return {key: take(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        items = (take(item, rows) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
