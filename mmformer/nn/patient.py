"""Linear maps that pack their weights as soon as it pays: for those who have a model read many values, batch by batch.

To pack a weight takes as long as some thousand rows gain by it, more of them in bfloat16, and more where a map narrows
(``benchmarks/results/prepacking/amd_epyc.md``: "paid by"). So it is packed when ``WORTH`` rows have met it, where
oneDNN has the faster products (``nn/prepacked.py``): in MKL's order a weight is for one number of rows.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mmformer.nn.precision import product_dtype
from mmformer.nn.prepacked import PackedLinear, can_pack, changed, is_onednns, weights_to_pack

WORTH = {torch.float32: 1024, torch.bfloat16: 4096}
"""Rows that meet a weight before it is packed, by the precision of its products."""

M = TypeVar("M", bound=nn.Module)


class PatientLinear(nn.Linear):
    """A linear map that shares another's parameters, and does not see what becomes of them once it has packed them."""

    plain: nn.Linear
    packed: PackedLinear | None
    met: int
    """Rows so far, while it is not packed."""

    @classmethod
    def of(cls, linear: nn.Linear) -> PatientLinear:
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        made.training = linear.training
        made.__dict__.update(plain=linear, packed=None, met=0)  # no parts of it: they have the same parameters
        return made

    def now(self, x: Tensor) -> nn.Linear:
        """What computes the map of x, … in, the fastest."""
        if torch.is_grad_enabled():
            return self.plain
        if self.packed is None:
            dtype = product_dtype(self.weight)
            self.met += x.numel() // self.in_features
            if not is_onednns(dtype) or self.met < WORTH[dtype]:
                return self.plain
            self.__dict__["packed"] = PackedLinear.of(self.weight, self.bias, 1)
        assert self.packed is not None
        same = product_dtype(x) == product_dtype(self.weight) == self.packed.packed.dtype
        return self.packed if same else self.plain

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.now(x)(x)
        return made


def patient(module: M) -> M:
    """A copy of a module with such maps, which shares all else with it; the module itself where none would ever pack,
    or all together would take more than ``prepacked.MOST``.

    While the copy is used, weights are to stay as they are.
    """
    first = next(module.parameters(), None)
    if first is None or torch.is_grad_enabled() or not is_onednns(product_dtype(first)):
        return module
    # Who counts or records operations is to see those that there are elsewhere, too.
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return module
    weights = weights_to_pack(module)
    if weights is None or not can_pack(weights, 1):
        return module
    return changed(module, PatientLinear.of)
