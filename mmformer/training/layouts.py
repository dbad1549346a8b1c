"""Checkpoints that another number of processes wrote: any layout reads any.

One process writes one file, in which optimizer states go by numbers; several write a folder in which each has its part,
and states go by parameters' names (torch.distributed.checkpoint). What is in them is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from mmformer.parallel.sharding import sharded_as
from mmformer.training.writing_state import REST

_OPTIMIZER = "optimizer_"


def read_parts(folder: Path) -> dict[str, Any]:
    """What several processes wrote, as one process would have written it."""
    parts: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()  # type: ignore[no-untyped-call]
    _load_state_dict(parts, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    checkpoint: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    checkpoint["state_dict"] = parts["state_dict"]
    names = sorted((name for name in parts if name.startswith(_OPTIMIZER)), key=lambda name: int(name[10:]))
    checkpoint["optimizer_states"] = [by_number(parts[name]) for name in names]
    return checkpoint


def held(module: nn.Module) -> dict[str, Tensor]:
    """What this process has of a module's state, by names; nothing is copied. The rest is in other stages."""
    return {name: value for name, value in module.state_dict().items() if not value.is_meta}


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make its state, by an update with a rate of 0, where it has none yet."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = None if parameter.is_meta else torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def load_parts(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> dict[str, Any]:
    """Give each of several processes its part of what several wrote, these or others; what is left is returned.

    Parameters that had no gradient yet have no state of the optimizer there, and have none after this.
    """
    reader = FileSystemReader(folder)
    written = reader.read_metadata().state_dict_metadata
    parts: dict[str, Any] = {"state_dict": held(module)}
    for place, optimizer in enumerate(optimizers):
        begin(optimizer)
        own, part = by_name(optimizer.state_dict(), optimizer, module), f"{_OPTIMIZER}{place}"
        states = own["state"].items()
        own["state"] = {n: each for n, each in states if any(f"{part}.state.{n}.{key}" in written for key in each)}
        parts[part] = own
    _load_state_dict(parts, storage_reader=reader, no_dist=True)  # into the tensors themselves
    for place, optimizer in enumerate(optimizers):
        optimizer.load_state_dict(by_number(parts[f"{_OPTIMIZER}{place}"]))
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    return rest


def load_whole(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], file: Path) -> dict[str, Any]:
    """Give each of several processes its part of what one process wrote; what is left is returned.

    Every process reads the file, whose tensors stay on the disk until they are asked for.
    """
    checkpoint: dict[str, Any] = torch.load(file, mmap=True, map_location="cpu", weights_only=True)
    for optimizer, state in zip(optimizers, checkpoint.pop("optimizer_states"), strict=True):
        begin(optimizer)  # which may move weights in their last bit
        own, named = (by_name(each, optimizer, module) for each in (optimizer.state_dict(), state))
        states = {name: values for name, values in own["state"].items() if name in named["state"]}
        for name, values in states.items():
            _fill(values, named["state"][name])
        optimizer.load_state_dict(by_number({**named, "state": states}))
    _fill(held(module), checkpoint.pop("state_dict"))
    return checkpoint


@torch.no_grad()
def _fill(own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copy this process's part of whole tensors into its own, by names."""
    for name, value in own.items():
        value.copy_(sharded_as(whole[name].to(value.device), value))


def by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the parameters' numbers, as it has it itself: they are counted through its groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    states = state.get("state", {})  # torch.distributed.checkpoint writes nothing of what is empty
    return {"state": {numbers[name]: own for name, own in states.items()}, "param_groups": groups}


def by_name(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """The same by the parameters' names.

    Lightning's own counts through the module, which has another order than an optimizer with several groups.
    """
    known = {parameter: name for name, parameter in module.named_parameters()}
    names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: own for number, own in state["state"].items()}, "param_groups": groups}
