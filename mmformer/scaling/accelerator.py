"""Attention as on a GPU, where tensors without data are computed with by the code for a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmformer.nn import kernel


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Inside, softmax attention is the fused kernel's whatever the precision and the dropout, as on a GPU."""
    longest, fewest = kernel.PLAIN_KEYS, kernel.FEWEST_HEADS
    kernel.PLAIN_KEYS, kernel.FEWEST_HEADS = 0, sys.maxsize
    try:
        with _Fused():
            yield
    finally:
        kernel.PLAIN_KEYS, kernel.FEWEST_HEADS = longest, fewest


class _Fused(TorchFunctionMode):
    """The CPU's fused kernel has no dropout, and would fall back to products that it keeps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)
