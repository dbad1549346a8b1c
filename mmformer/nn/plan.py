"""How a sparse pattern is computed, decided once a pass for all layers that have it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmformer.nn.blocked import Bias, blocked_plan
from mmformer.nn.flex import flex_plan
from mmformer.nn.mask import Mask
from mmformer.nn.pattern import PatternSpec


class Sparse(NamedTuple):
    """What a mixer wants computed in blocks."""

    pattern: PatternSpec
    dropout: float = 0.0  # on the weights, in training


class Plan(Protocol):
    """What is computed of a mask."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """What ``kernel.attend`` gives with the dense mask.

        Args:
            query: B H L width of a head.
            key: B Hk L width.
            value: B Hk L width.
            dropout: on the weights.
        """


def make_plan(mask: Mask, length: int, device: torch.device, dropout: float, bias: Bias | None = None) -> Plan | None:
    """The plan of a mask with a pattern over a row of a length; None where blocks would save nothing.

    On CUDA it is PyTorch's flex attention, a fused kernel; elsewhere, and where weights are dropped or biased, which
    flex cannot, blocks are gathered.

    Args:
        bias: what a position adds to scores, of ``mask.pos``; None: nothing.
    """
    if device.type == "cuda" and not dropout and bias is None:
        return flex_plan(mask, length, device)
    plan = blocked_plan(mask, length, device)
    if plan is None or bias is None:
        return plan
    assert mask.pos is not None, "the stack says where tokens stand"
    return plan.biased(bias, mask.pos)
