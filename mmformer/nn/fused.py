"""A linear map and the GELU of what it makes in one go, on a CPU in inference mode, where the product is oneDNN's.

Hidden units are then written once, where they would be written, read and written again. MKL's products (float32's on
Intel's processors) have no such kernel.
(A pass that only goes without a gradient may be followed by one with it that is to make the same: GradCache.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mmformer.nn.precision import product_dtype
from mmformer.nn.prepacked import PackedLinear, is_onednns
from mmformer.nn.unaltered import is_unaltered

FEWEST = 256
"""Tokens from which it is worth it with weights as they are."""

APPROXIMATIONS = ("none", "tanh")
"""Of GELU, which the kernel calls so, too."""


def can_fuse(x: Tensor, linear: nn.Linear, approximate: str) -> bool:
    """Whether ``linear_gelu`` does what the two would do one after the other, and faster."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or x.device.type != "cpu":
        return False
    if approximate not in APPROXIMATIONS or linear.bias is None:
        return False
    if isinstance(linear, PackedLinear):  # a product that nobody has hung anything on, and that is its own kernel's
        return not linear.of_mkl and product_dtype(x) == linear.packed.dtype
    if type(linear) is not nn.Linear or x.numel() < FEWEST * x.shape[-1]:
        return False
    dtype = product_dtype(linear.weight)
    if product_dtype(x) != dtype or type(linear.weight) is not nn.Parameter or not is_unaltered(linear):
        return False
    # Who counts or records operations is to see those that there are elsewhere, too.
    watched = torch._C._get_tracing_state() is not None or _get_current_dispatch_mode() is not None
    return not watched and is_onednns(dtype)


def linear_gelu(x: Tensor, linear: nn.Linear, approximate: str) -> Tensor:
    """``gelu(linear(x))``, … in -> … out, in the precision of the packed weight, or autocast's."""
    weight = linear.packed if isinstance(linear, PackedLinear) else linear.weight.to(product_dtype(linear.weight))
    x, bias = x.to(weight.dtype), linear.bias.to(weight.dtype)
    made: Tensor = _mkldnn._linear_pointwise(x, weight, bias, "gelu", [], approximate)
    return made


_mkldnn: Any = torch.ops.mkldnn
