"""Tensor parallel: processes that compute the same tokens share out heads and hidden units (Shoeybi et al. 2019, §3).

What enters a branch is the same in all of them, each makes its heads' or units' part of the branch's sum, and the parts
are added up before the residual sum: once a branch in the forward pass, and once for what entered it in the backward
pass. Parameters are DTensors, shared out evenly in the order that they have in one process, so that whatever is made of
them by name (checkpoints, averages, an optimizer's state, bundles) is what it is there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_to_all_single
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from mmformer.models.model import Model
from mmformer.nn.attention import Attention
from mmformer.nn.feedforward import FeedForward, GatedFeedForward, PlainFeedForward
from mmformer.nn.layer import Layer
from mmformer.nn.mixer import State, View
from mmformer.nn.position import Rotary
from mmformer.nn.stack import Stack
from mmformer.parallel.dividing import shares_out
from mmformer.types import Aux


def share_out(model: Model, mesh: Any) -> None:
    """Share out the layers of a model's stacks in place; what stays whole is told by ``ParallelSpec.tensor``.

    To be done before it is sharded.

    Args:
        mesh: of one dimension. Each of its processes has the whole model, with the same weights.
    """
    for stack in model.stacks.values():
        assert isinstance(stack, Stack), "a model's stacks"
        share_stack(stack, mesh)


def share_stack(stack: Stack, mesh: Any) -> None:
    """Share out a stack's layers."""
    specs = dict(zip(stack.spec.applied, stack.spec.layers, strict=True))
    for index, layer in enumerate(stack.layers):
        assert isinstance(layer, Layer), "a stack's layers"
        spec = specs[index]
        for part, module in ((spec.mixer, layer.mixer), (spec.cross, layer.cross)):
            if shares_out(part, stack.spec):
                assert isinstance(module, Attention)
                _share_attention(module, mesh)
        if shares_out(spec.feedforward, stack.spec):
            assert isinstance(layer.feedforward, FeedForward)
            _share_feedforward(layer.feedforward, mesh)


def _share_attention(attention: Attention, mesh: Any) -> None:
    own, key_value = (number * attention.head_width for number in (attention.heads, attention.key_value_heads))
    if hasattr(attention, "qkv"):
        rows: dict[str, ParallelStyle] = {"qkv": SharedRows(own, key_value, key_value)}
    else:
        rows = {"q": SharedRows(own), "kv": SharedRows(key_value, key_value)}
    parallelize_module(attention, mesh, {**rows, "out": RowwiseParallel()}, src_data_rank=None)
    attention.heads //= mesh.size()
    attention.key_value_heads //= mesh.size()
    attention.__class__ = SharedAttention
    assert isinstance(attention, SharedAttention)
    attention.mesh = mesh


def _share_feedforward(feedforward: FeedForward, mesh: Any) -> None:
    assert isinstance(feedforward, PlainFeedForward | GatedFeedForward)
    hidden = feedforward.down.in_features
    rows: dict[str, ParallelStyle] = {"up": SharedRows(hidden)}
    if isinstance(feedforward, GatedFeedForward):
        rows = {"gate_up": SharedRows(hidden, hidden)}
    parallelize_module(feedforward, mesh, {**rows, "down": RowwiseParallel()}, src_data_rank=None)


class SharedAttention(Attention):
    """What attention becomes, in place: of its heads, it has and computes this process's."""

    mesh: Any

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        bias = None if view.bias is None else own_heads(view.bias, self.mesh)
        rotary = None if view.rotary is None else Rotary(*(own_heads(table, self.mesh) for table in view.rotary))
        # The mask goes into a bias here: with it, rows have biases of their own, whose gradients would all be sent.
        lowered = view.lowered if bias is None else None
        return super().forward(x, view._replace(bias=bias, lowered=lowered, rotary=rotary), state, keep)

    def _normalise(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:  # type: ignore[override]  # one gain for all
        if norm is None:
            return x
        gain = entering(norm.weight, self.mesh)
        return F.rms_norm(x, norm.normalized_shape, gain.to(x.dtype), norm.eps)


class SharedRows(ParallelStyle):
    """For a linear map that is several, one below the other: each process computes its share of every one of them.

    The parameters are stored in even parts nevertheless, in the map's own order.
    """

    def __init__(self, *parts: int) -> None:
        """Args: parts: rows of each of the several."""
        super().__init__()
        self.parts = parts

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        assert type(module) is nn.Linear, "adapters are refused beside it"
        distribute_module(module, device_mesh, store_evenly)
        module.__class__ = SharedLinear
        assert isinstance(module, SharedLinear)
        module.mesh, module.exchange = device_mesh, None
        if len(self.parts) > 1:
            module.exchange = exchange_of(self.parts, device_mesh.size(), device_mesh.get_local_rank())
            order = module.exchange.order.to(device_mesh.device_type)  # the weight may have no data yet
            module.register_buffer("order", order, persistent=False)
        return module


def store_evenly(_: str, module: nn.Module, mesh: Any) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        stored = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(stored, requires_grad=parameter.requires_grad))


class SharedLinear(nn.Linear):
    """What a linear map becomes, in place: it makes this process's part of the output."""

    mesh: Any
    exchange: Exchange | None
    order: Tensor  # that of the exchange, where there is one

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self._computed(self.bias)
        return F.linear(entering(x, self.mesh), self._computed(self.weight), bias)

    def _computed(self, parameter: Tensor) -> Tensor:
        """The rows that this process computes with, of a parameter of which it stores others."""
        assert isinstance(parameter, DTensor)
        stored = parameter.to_local()
        if self.exchange is None:
            return stored
        sent = stored.index_select(0, self.order)
        rows, group = (self.exchange.received, self.exchange.sent), self.mesh.get_group()
        computed: Tensor = all_to_all_single(torch.empty_like(sent), sent, *rows, group)  # type: ignore[no-untyped-call]
        return computed


class Exchange(NamedTuple):
    """Which rows change hands between those who store them and those who compute with them."""

    order: Tensor  # int64: this process's rows, by who computes with them, then as they are stored
    sent: list[int]  # how many to each process
    received: list[int]  # how many from each


def exchange_of(parts: tuple[int, ...], processes: int, rank: int) -> Exchange:
    """The exchange for several matrices, one below the other, of so many rows each.

    All rows are stored in even parts; of each matrix, all processes compute with as many rows, in the same order.
    """
    owner = torch.arange(sum(parts)) // (sum(parts) // processes)
    user = torch.cat([torch.arange(part) // (part // processes) for part in parts])
    stored, computed = user[owner == rank], owner[user == rank]
    sent, received = (torch.bincount(each, minlength=processes).tolist() for each in (stored, computed))
    return Exchange(stored.argsort(stable=True), sent, received)


def own_heads(table: Tensor, mesh: Any) -> Tensor:
    """This process's heads of a table that has a second dimension of all of them, or of one for all."""
    table = entering(table, mesh)
    return table if table.shape[1] == 1 else table.chunk(mesh.size(), 1)[mesh.get_local_rank()]


def entering(x: Tensor, mesh: Any) -> Tensor:
    """What all processes have alike, as each computes its part with it: its gradient is the sum of what they say."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
