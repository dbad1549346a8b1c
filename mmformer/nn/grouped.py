"""Linear maps of rows in groups: each group of rows goes through a matrix of its own, in one operation.

It is an operation of PyTorch's, so that its loop over groups, whose sizes are data, is not in the way of compilation,
nor of tensors without data. On a GPU, bfloat16 has a kernel that needs no loop and does not wait for the sizes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.precision import product_dtype


class GroupedLinear(nn.Module):
    """As many linear maps as there are groups, initialised as nn.Linear is."""

    undecayed = ("bias",)
    stacked = ("weight",)  # of a matrix for each group

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups, outputs)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[2])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Map each row by its group's matrix.

        Args:
            x: N inputs, sorted by group.
            ends: groups, int64: where each group's rows end. Rows past the last are no group's.

        Returns:
            N outputs; zero in rows of no group.
        """
        return map_groups(x, self.weight, self.bias, ends)


def map_groups(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """What ``GroupedLinear`` makes of x with these parameters, in the precision that autocast asks for."""
    dtype = product_dtype(x)
    y: Tensor = grouped_linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), ends)
    return y


@torch.library.custom_op(
    "mmformer::grouped_linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias, Tensor ends) -> Tensor"
)
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """N inputs, groups outputs inputs, groups outputs, groups -> N outputs: see ``GroupedLinear``."""
    if _has_kernel(x, weight):
        group, nowhere = _groups(x, ends)
        y = F.grouped_mm(x, weight.mT, offs=ends.int())
        y = y if bias is None else y + bias[group]
        return y.masked_fill_(nowhere, 0.0)
    y = x.new_empty(len(x), weight.shape[1])
    for index, rows in enumerate(_slices(ends)):
        if bias is None:
            torch.mm(x[rows], weight[index].t(), out=y[rows])
        else:
            torch.addmm(bias[index], x[rows], weight[index].t(), out=y[rows])
    y[int(ends[-1]) :] = 0
    return y


@torch.library.custom_op(
    "mmformer::grouped_linear_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor weight, Tensor ends, bool bias) -> (Tensor, Tensor, Tensor)",
)
def grouped_linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the weight, and of the bias (empty where there is none)."""
    gradient, of_bias = gradient.contiguous(), weight.new_zeros(weight.shape[:2] if bias else 0)
    if _has_kernel(x, weight):
        group, nowhere = _groups(x, ends)
        of_x = F.grouped_mm(gradient, weight, offs=ends.int()).masked_fill_(nowhere, 0.0)
        of_weight = F.grouped_mm(gradient.t(), x, offs=ends.int())
        if bias:
            kept = gradient.masked_fill(nowhere, 0.0).float()
            of_bias = of_bias.float().index_add_(0, group, kept).to(weight.dtype)
        return of_x, of_weight, of_bias
    of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
    for index, rows in enumerate(_slices(ends)):
        torch.mm(gradient[rows], weight[index], out=of_x[rows])
        torch.mm(gradient[rows].t(), x[rows], out=of_weight[index])
        if bias:
            torch.sum(gradient[rows], dim=0, out=of_bias[index])
    of_x[int(ends[-1]) :] = 0
    return of_x, of_weight, of_bias


def _slices(ends: Tensor) -> list[slice]:
    """The rows of each group, for a loop that waits for them."""
    listed = ends.tolist()
    return [slice(start, end) for start, end in zip([0, *listed], listed, strict=False)]


def _groups(x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The group of each row: N; and where it has none, and any is named: N 1."""
    group = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
    return group.clamp(max=len(ends) - 1), (group == len(ends))[:, None]


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the GPU's kernel takes these; it wants rows of whole 16 bytes."""
    aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and aligned


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_linear_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2] if bias else 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ends = inputs
    ctx.save_for_backward(x, weight, ends)
    ctx.bias = bias is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    of_x, of_weight, of_bias = grouped_linear_backward(gradient, *ctx.saved_tensors, ctx.bias)
    return of_x, of_weight, of_bias if ctx.bias else None, None


grouped_linear.register_autograd(_backward, setup_context=_remember)
