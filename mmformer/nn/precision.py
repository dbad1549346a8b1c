"""What autocast is told where it does not know by itself; tensors without data, which it refuses, are passed by."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute a matrix product of x in."""
    kind = x.device.type
    autocast = not x.is_meta and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, what is on x's device is computed in its own precision."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def exact_dtype(x: Tensor) -> torch.dtype:
    """x's own, or float32 where that is less."""
    return torch.promote_types(x.dtype, torch.float32)
