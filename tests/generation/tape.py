"""What a CUDA graph does, on any device: operators are recorded with the memory that they read and write, and done
again in that memory, whatever Python would do by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """Records while it is entered, and leaves memory as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        made = func(*args, **kwargs)
        read = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        own = tensors(made)
        fresh = [tensor.untyped_storage().data_ptr() not in read for tensor in own]

        def again() -> None:
            for old, new, is_fresh in zip(own, tensors(func(*args, **kwargs)), fresh, strict=True):
                if is_fresh:
                    old.copy_(new)

        self.calls.append(again)
        return made

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    def replay(self) -> None:
        for call in self.calls:
            call()


def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """In place of ``generation.captured.recorded``."""
    tape = Tape()
    with tape:
        run()
    return tape.replay
