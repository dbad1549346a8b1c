"""Hidden units that are not kept for the gradient, but made again of the features that are.

What a feed-forward's second product reads is a cheap function of what its first one made, and as large. PyTorch keeps
both, of gated and approximated activations what is between them, too; here the features alone are kept. The gradient is
the same to the bit, and a plain layer's activations take three quarters of the memory. (A rectifier's gradient needs no
features: nothing is saved there, and little is computed again.) (What is cheap is computed
again, and products are kept: Korthikanti et al. 2022, Reducing activation recomputation in large transformer models,
§5, by a finer cut.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

Units = Callable[[Tensor], Tensor]
"""Makes hidden units of features, elementwise or nearly so; it draws nothing."""


def product_of_units(features: Tensor, units: Units, product: Callable[[Tensor], Tensor]) -> Tensor:
    """``product(units(features))``, for which the gradient keeps the features and makes the units again.

    Where layers are computed again as a whole, or compiled, others decide what is kept: that is plain then.
    """
    if not (features.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling() or _others_decide():
        return product(units(features))
    made: Tensor = _Made.apply(features, units)  # type: ignore[no-untyped-call]
    hooks = _Hooks(made)
    with saved_tensors_hooks(hooks.pack, hooks.unpack):
        result = product(made)
    hooks.made = None  # the graph keeps the hooks
    return result


def _others_decide() -> bool:
    """Whether what is kept goes through hooks already: those of activation checkpointing."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class _Hooks:
    """What a product keeps: its weights as they are, and of the units their shape."""

    def __init__(self, made: Tensor) -> None:
        self.made: Tensor | None = made
        self.node: Any = made.grad_fn

    def pack(self, kept: Tensor) -> Tensor | torch.Size:
        made = self.made
        assert made is not None, "packed while the product is made"
        whole = kept is made or (kept._base is made and kept.numel() == made.numel() and kept.is_contiguous())
        return kept.shape if whole else kept

    def unpack(self, kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else _again(self.node)[1].detach().view(kept)


class _Made(torch.autograd.Function):
    """The units. Their gradient, and the product's before it, make them again once."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, units: Units) -> Tensor:
        ctx.save_for_backward(features)
        ctx.units, ctx.made, ctx.precision = units, None, _precision(features.device.type)
        return units(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, made = _again(ctx)
        ctx.made = None
        (own,) = torch.autograd.grad(made, features, gradient)
        return own, None


def _precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What computes on a device in the precision that it is computed in now."""
    if not torch.amp.autocast_mode.is_autocast_available(device):  # tensors without data
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))


def _again(node: Any) -> tuple[Tensor, Tensor]:
    """The features, as a leaf, and the units with their way back to them."""
    if node.made is None:
        with torch.enable_grad(), node.precision():
            features = node.saved_tensors[0].detach().requires_grad_()
            node.made = features, node.units(features)
    made: tuple[Tensor, Tensor] = node.made
    return made
