"""Linear maps with weights as a CPU's products read them fastest, for writing, where few rows meet them all each time.

A product of few rows brings the weight into the order that its kernel wants at each call, which takes about as long as
the rest (``benchmarks/results/prepacking``). Here that order is kept. It takes as much memory as the weights do.

There are two orders: oneDNN's, and for float32 on Intel's processors MKL's, which PyTorch's own products go through. On
others MKL's products are slow, and oneDNN's of packed weights up to 4.7 times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.precision import product_dtype
from mmformer.nn.unaltered import is_unaltered

FEWEST = 4
"""Rows from which MKL's order is worth it; oneDNN's is from one on."""
HINT = {torch.float32: 256, torch.bfloat16: 64}
"""Rows that oneDNN's order is made for at least: one for fewer is slower for those, too."""
MOST = 2 * 2**30
"""Bytes of packed weights at most; more are left as they are."""

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Linear):
    """A linear map that shares another's weight, and holds it packed beside it. It has no gradient."""

    bias: nn.Parameter | None  # type: ignore[assignment]  # as nn.Linear's is
    packed: Tensor
    rows: int
    """Of which products are fast in MKL's order: exactly as many. Fewer are filled up, or as they were."""
    of_mkl: bool
    """Whether it is in that order."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, rows: int) -> PackedLinear:
        """Pack a weight, (out, in) on a CPU, for a number of rows: in the precision that autocast would compute in."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.out_features, made.in_features = weight.shape
        made.weight = nn.Parameter(weight, requires_grad=False)
        dtype = product_dtype(weight)
        made.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        made.rows, made.of_mkl = packed_for(dtype, rows), is_mkls(dtype)
        reorder = _mkl._mkl_reorder_linear_weight if made.of_mkl else _mkldnn._reorder_linear_weight
        made.packed = reorder(weight.detach().to(dtype), made.rows)
        return made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor
        if not self.of_mkl:
            made = _mkldnn._linear_pointwise(x.to(self.packed.dtype), self.packed, self.bias, "none", [], "")
            return made
        flat = x.reshape(-1, self.in_features)
        number = len(flat)
        if self.rows > number >= self.rows / 2:  # texts that have ended
            flat = F.pad(flat, (0, 0, 0, self.rows - number))
        made = _mkl._mkl_linear(flat.float(), self.packed, self.weight, self.bias, self.rows)
        return made[:number].view(*x.shape[:-1], self.out_features)


def is_mkls(dtype: torch.dtype) -> bool:
    """Whether MKL has the faster products of this precision: float32's, on processors that it was written for."""
    there = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return dtype == torch.float32 and _processor() == "intel" and there


def is_onednns(dtype: torch.dtype) -> bool:
    """Whether oneDNN has the faster ones: all others on x86. Elsewhere nothing was measured, and nothing is packed."""
    if dtype not in HINT or _processor() == "unknown" or is_mkls(dtype):
        return False
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and (dtype != torch.bfloat16 or bool(_mkldnn._is_mkldnn_bf16_supported()))


@cache
def _processor() -> str:
    known = torch.cpu.get_capabilities()  # whose keys are not documented: of one that is not there, nothing is known
    if known.get("architecture") != "x86_64":
        return "unknown"
    return "intel" if "Intel" in known.get("cpu_name", "Intel") else "other"


def packed_for(dtype: torch.dtype, rows: int) -> int:
    """How many rows a weight is packed for, where so many are to be multiplied."""
    return rows if is_mkls(dtype) else max(rows, HINT.get(dtype, rows))


def can_pack(weights: Sequence[Tensor], rows: int) -> bool:
    """Whether packing weights would make products of so many rows faster, and takes no more than ``MOST``."""
    dtypes = {product_dtype(weight) for weight in weights}
    plain = all(type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" for weight in weights)
    size = sum(weight.numel() * product_dtype(weight).itemsize for weight in weights)
    if not weights or not plain or size > MOST or torch.is_grad_enabled():
        return False
    return all(is_onednns(dtype) or (is_mkls(dtype) and rows >= FEWEST) for dtype in dtypes)


def weights_to_pack(module: nn.Module) -> list[Tensor] | None:
    """The weights of a module's linear maps; None: it is more than it seems (sharded, compiled, with hooks)."""
    if not all(is_unaltered(part) for part in module.modules()):
        return None
    return [part.weight for part in module.modules() if type(part) is nn.Linear]


def prepacked(module: M, rows: int) -> M:
    """A copy of a module whose linear maps are packed for products of so many rows; it shares all else.

    What it packs is to be asked for first: ``weights_to_pack``, ``can_pack``.
    """
    return changed(module, lambda linear: PackedLinear.of(linear.weight, linear.bias, rows))


def changed(module: M, change: Callable[[nn.Linear], nn.Linear]) -> M:
    """A copy of a module with others in place of its linear maps; it shares all else."""
    copy: M = _copied(module, change, {})
    return copy


def _copied(module: Any, change: Callable[[nn.Linear], nn.Linear], made: dict[nn.Module, nn.Module]) -> Any:
    if module is None:
        return None
    if module not in made:
        if type(module) is nn.Linear:
            made[module] = change(module)
        else:
            copy = module.__class__.__new__(module.__class__)
            copy.__dict__ = {**module.__dict__}
            copy.__dict__["_modules"] = {name: _copied(part, change, made) for name, part in module._modules.items()}
            made[module] = copy
    return made[module]


_mkl: Any = torch.ops.mkl
_mkldnn: Any = torch.ops.mkldnn
