"""What is cheap is not kept for the gradient, but made again of what is: hidden units of features, normalised tokens of
tokens.

What a feed-forward's second product reads is a cheap function of what its first one made, and as large. PyTorch keeps
both, of gated and approximated activations what is between them, too; here the features alone are kept. So are a
branch's tokens, not the normalised ones that its first product reads. The gradient is the same to the bit, and a plain
layer's activations take less than two thirds of the memory. (A rectifier's gradient needs no features: nothing is saved
there, and little is computed again.) (What is cheap is computed again, and products are kept: Korthikanti et al. 2022,
Reducing activation recomputation in large transformer models, §5, by a finer cut.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from mmformer.nn.precision import product_dtype
from mmformer.nn.unaltered import is_unaltered

Units = Callable[[Tensor], Tensor]
"""Makes hidden units of features, elementwise or nearly so; it draws nothing."""


def product_of_units(features: Tensor, units: Units, product: Callable[[Tensor], Tensor]) -> Tensor:
    """``product(units(features))``, for which the gradient keeps the features and makes the units again.

    Where layers are computed again as a whole, or compiled, others decide what is kept: that is plain then.
    """
    return product_of(_made(units, features) if _is_ours(features) else units(features), product)


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """``norm(x)``, a LayerNorm's or an RMSNorm's, which ``product_of`` need not keep; another's is plain."""
    if not _is_ours(x) or product_dtype(x) != x.dtype or not is_unaltered(norm):
        return norm(x)  # type: ignore[no-any-return]
    if type(norm) is nn.LayerNorm and norm.weight is not None:
        return _made(partial(_layer_norm, norm.normalized_shape, norm.eps), x, norm.weight, norm.bias)
    if type(norm) is nn.RMSNorm and norm.weight is not None:
        return _made(partial(_rms_norm, norm.normalized_shape, norm.eps), x, norm.weight)
    return norm(x)  # type: ignore[no-any-return]


def product_of(made: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """``product(made)``, which does not keep what it reads where that can be made again."""
    if torch.compiler.is_compiling() or not _can_be_made_again(made) or _others_decide():
        return product(made)
    hooks = _Hooks(made)
    with saved_tensors_hooks(hooks.pack, hooks.unpack):
        result = product(made)
    hooks.made = None  # the graph keeps the hooks
    return result


def _can_be_made_again(made: Tensor) -> bool:
    return isinstance(made.grad_fn, _Made._backward_cls)


def _is_ours(x: Tensor) -> bool:
    """Whether what is made of x can be made again here."""
    return x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _others_decide()


def _others_decide() -> bool:
    """Whether what is kept goes through hooks already: those of activation checkpointing."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _layer_norm(shape: Sequence[int], eps: float, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, list(shape), weight, bias, eps)


def _rms_norm(shape: Sequence[int], eps: float | None, x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, list(shape), weight, eps)


class _Hooks:
    """What a product keeps: its weights as they are, and of what it reads the shape."""

    def __init__(self, made: Tensor) -> None:
        self.made: Tensor | None = made
        self.node: Any = made.grad_fn

    def pack(self, kept: Tensor) -> tuple[Tensor, int] | torch.Size:
        made = self.made
        assert made is not None, "packed while the product is made"
        whole = kept is made or (kept._base is made and kept.numel() == made.numel() and kept.is_contiguous())
        return kept.shape if whole else (kept, kept._version)

    def unpack(self, kept: tuple[Tensor, int] | torch.Size) -> Tensor:
        if isinstance(kept, torch.Size):
            return _again(self.node)[1].detach().view(kept)
        tensor, version = kept
        if tensor._version != version:  # which PyTorch leaves to hooks
            raise RuntimeError(
                f"A tensor of shape {tuple(tensor.shape)} that a gradient needs was changed in place after the forward "
                f"pass. Compute the gradient first."
            )
        return tensor


def _made(make: Callable[..., Tensor], *of: Tensor | None) -> Tensor:
    made: Tensor = _Made.apply(make, *of)  # type: ignore[no-untyped-call]
    return made


class _Made(torch.autograd.Function):
    """What is made. Its gradient, and that of the products that read it, make it again once."""

    @staticmethod
    def forward(ctx: Any, make: Callable[..., Tensor], *of: Tensor | None) -> Tensor:
        ctx.save_for_backward(*of)
        ctx.make, ctx.made, ctx.wanted = make, None, ctx.needs_input_grad[1:]
        ctx.precision = _precision(of[0].device.type)  # type: ignore[union-attr]
        return make(*of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of, made = _again(ctx)
        ctx.made = None
        wanted = [each for each, is_wanted in zip(of, ctx.wanted, strict=True) if each is not None and is_wanted]
        own = iter(torch.autograd.grad(made, wanted, gradient))
        return None, *(next(own) if is_wanted else None for is_wanted in ctx.wanted)


def _precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What computes on a device in the precision that it is computed in now."""
    if not torch.amp.autocast_mode.is_autocast_available(device):  # tensors without data
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))


def _again(node: Any) -> tuple[list[Tensor | None], Tensor]:
    """What it is made of, as leaves, and what is made, with its way back to them."""
    if node.made is None:
        with torch.enable_grad(), node.precision():
            of = [
                None if each is None else each.detach().requires_grad_(is_wanted)
                for each, is_wanted in zip(node.saved_tensors, node.wanted, strict=True)
            ]
            node.made = of, node.make(*of)
    made: tuple[list[Tensor | None], Tensor] = node.made
    return made
