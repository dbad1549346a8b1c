"""Expert parallel: processes that have different parts of a batch share out the experts of its layers.

Each process routes its own tokens, by a router that all have. Tokens travel to the processes of their experts and back,
by one all-to-all each way, forwards as well as backwards; their gates wait for them at home (Lepikhin et al. 2020,
GShard, §3.2). What routers count (capacities, what is dropped, balances) they count by row, so that it makes no
difference where the experts are. Parameters are DTensors with the names and shapes that they have in one process.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.nn.functional import all_to_all_single
from torch.distributed.tensor import DTensor, Shard, distribute_module
from torch.nn import functional as F

from mmformer.models.model import Model
from mmformer.nn.grouped import GroupedLinear, map_groups
from mmformer.nn.moe import Experts
from mmformer.nn.precision import product_dtype
from mmformer.parallel.mesh import HOLDING, parameters_mesh
from mmformer.parallel.sharding import local_part
from mmformer.parallel.tensor import store_evenly


def spread_experts(model: Model, mesh: Any, policy: MixedPrecisionPolicy) -> frozenset[nn.Parameter]:
    """Spread the experts of a model's stacks in place; their parameters are returned, of which nothing is left to do.

    They are shared out over the dimension ``expert``, in their order, and what a process has of them is sharded over
    the other dimensions that parameters are sharded over.

    Args:
        mesh: of all processes. Each has the whole model, with the same weights.
        policy: what FSDP2 gathers parameters in.
    """
    spread = [module for module in model.stacks.modules() if type(module) is Experts]
    held = parameters_mesh(mesh, [name for name in HOLDING if name != "expert"])
    for experts in spread:
        _share_out(experts, mesh["expert"])
        if held is not None:
            fully_shard(experts, mesh=held, mp_policy=policy, shard_placement_fn=partial(_placed, held.shape[-1]))
    return frozenset(parameter for experts in spread for parameter in experts.parameters())


def _share_out(experts: Experts, mesh: Any) -> None:
    distribute_module(experts, mesh, store_evenly)
    for module in (experts.up, experts.down):
        module.__class__ = SharedGroups
    experts.__class__ = SharedExperts
    assert isinstance(experts, SharedExperts)
    experts.mesh = mesh


def _placed(processes: int, parameter: nn.Parameter) -> Shard | None:
    """So many processes share whole experts where they divide them, else rows of their matrices where they do."""
    sizes = local_part(parameter).shape[:2]  # experts outputs
    return next((Shard(place) for place, size in enumerate(sizes) if size % processes == 0), None)


class SharedExperts(Experts):
    """What a layer's experts become, in place: of them, it has and computes this process's, for the tokens of all."""

    mesh: Any

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many tokens come is data
    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        group = self.mesh.get_group()
        trip = trip_of(ends, group)
        home = x[: sum(trip.sent)].to(product_dtype(x))
        came = _exchanged(home, trip.sent, trip.received, group).index_select(0, trip.order)
        made = super().forward(came, trip.ends).index_select(0, trip.order.argsort())
        back = _exchanged(made, trip.received, trip.sent, group)
        return F.pad(back, (0, 0, 0, len(x) - len(back)))


class SharedGroups(GroupedLinear):
    """What their linear maps become, in place."""

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return map_groups(x, _own(self.weight), None if self.bias is None else _own(self.bias), ends)


class Trip(NamedTuple):
    """Where tokens go that this process routes, and what it does with those that come to its experts."""

    sent: list[int]  # how many to each process
    received: list[int]  # how many from each
    order: Tensor  # int64: of those received, by expert; of one expert, as they came
    ends: Tensor  # own experts, int64: where each one's end in that order


def trip_of(ends: Tensor, group: dist.ProcessGroup) -> Trip:
    """All processes' tokens, of which this one knows where its own go: where each expert's end (experts)."""
    leaving = torch.diff(ends, prepend=ends.new_zeros(1)).view(group.size(), -1)  # processes, the experts of each
    coming = torch.empty_like(leaving)  # of each process, for each of this one's experts
    dist.all_to_all_single(coming, leaving, group=group)
    sent, received = torch.stack([leaving.sum(1), coming.sum(1)]).tolist()
    own = torch.arange(leaving.shape[1], device=ends.device).repeat(group.size())
    expert = own.repeat_interleave(coming.flatten(), output_size=sum(received))
    return Trip(sent, received, expert.argsort(stable=True), coming.sum(0).cumsum(0))


def _exchanged(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows that came from each process, for rows to each."""
    empty = x.new_empty(sum(received), x.shape[1])
    came: Tensor = all_to_all_single(empty, x.contiguous(), received, sent, group)  # type: ignore[no-untyped-call]
    return came


def _own(parameter: Tensor) -> Tensor:
    """What this process has of a parameter.

    Gradients are averaged over all processes that have parts of a batch. Here they are the sum of those of all tokens
    that came, from as many processes as share out the experts, so that they are divided by their number already.
    """
    assert isinstance(parameter, DTensor)
    own, processes = parameter.to_local(), parameter.device_mesh.size()
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient / processes)  # type: ignore[no-untyped-call]
    return own
