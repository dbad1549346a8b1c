"""Linear maps with weights as a CPU's products read them fastest, for writing, where few rows meet them all each time.

A product of few rows brings the weight into the order that its kernel wants at each call, which takes about as long as
the rest (``benchmarks/results/prepacking.md``). Here that order is kept. It takes as much memory as the weights do.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmformer.nn.precision import product_dtype

FEWEST = {torch.float32: 4, torch.bfloat16: 1}
"""Rows from which it is worth it."""
MOST = 4 * 2**30
"""Bytes of packed weights at most; a larger module is left as it is."""

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Linear):
    """A linear map that shares another's weight, and holds it packed beside it. It has no gradient."""

    packed: Tensor
    rows: int
    """Of which products are fast in float32; others are as they were."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, rows: int) -> PackedLinear:
        """Pack a weight, (out, in) on a CPU, for a number of rows: in the precision that autocast would compute in."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.out_features, made.in_features = weight.shape
        made.weight = nn.Parameter(weight, requires_grad=False)
        dtype = product_dtype(weight)
        made.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        made.rows = rows
        pack = _mkl._mkl_reorder_linear_weight if dtype == torch.float32 else _mkldnn._reorder_linear_weight
        made.packed = pack(weight.detach().to(dtype), rows)
        return made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor
        if self.packed.dtype == torch.float32:
            made = _mkl._mkl_linear(x.float(), self.packed, self.weight, self.bias, self.rows)
        else:
            made = _mkldnn._linear_pointwise(x.to(self.packed.dtype), self.packed, self.bias, "none", [], "")
        return made


def can_pack(weight: Tensor, rows: int) -> bool:
    """Whether packing a weight would make products of so many rows faster, where no gradient is wanted."""
    fewest = FEWEST.get(product_dtype(weight)) if weight.device.type == "cpu" else None
    if fewest is None or rows < fewest or weight.numel() * product_dtype(weight).itemsize > MOST:
        return False
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()


def prepacked(module: M, rows: int) -> M:
    """A copy of a module whose linear maps are packed for products of so many rows; it shares all else.

    Where that is not faster, or the module is more than it seems (sharded, compiled, with hooks), it is returned as it
    is.
    """
    parts = [part for part in module.modules() if type(part) is nn.Linear]
    size = sum(part.weight.numel() * product_dtype(part.weight).itemsize for part in parts)
    if not parts or size > MOST or not all(can_pack(part.weight, rows) for part in parts):
        return module
    if any(_is_more(part) for part in module.modules()):
        return module
    return _copied(module, rows, {})


def _is_more(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl is not None
    return bool(hooked) or any(isinstance(value, DTensor) for value in module.parameters(recurse=False))


def _copied(module: Any, rows: int, made: dict[nn.Module, nn.Module]) -> Any:
    if module not in made:
        if type(module) is nn.Linear:
            made[module] = PackedLinear.of(module.weight, module.bias, rows)
        else:
            copy = module.__class__.__new__(module.__class__)
            copy.__dict__ = {**module.__dict__}
            copy.__dict__["_modules"] = {name: _copied(part, rows, made) for name, part in module._modules.items()}
            made[module] = copy
    return made[module]


_mkl: Any = torch.ops.mkl
_mkldnn: Any = torch.ops.mkldnn
