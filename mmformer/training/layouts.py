"""Checkpoints that another number of processes wrote: any layout reads any.

One process writes one file, in which optimizer states go by numbers; several write a folder in which each has its part,
and states go by parameters' names (torch.distributed.checkpoint). What is in them is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

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


def load_whole(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], file: Path) -> dict[str, Any]:
    """Give each of several processes its part of what one process wrote; what is left is returned.

    Every process reads the file, whose tensors stay on the disk until they are asked for.
    """
    checkpoint: dict[str, Any] = torch.load(file, mmap=True, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
    for optimizer, state in zip(optimizers, checkpoint.pop("optimizer_states"), strict=True):
        set_optimizer_state_dict(module, optimizer, by_name(state, optimizer, module), options=options)
    return checkpoint


def by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the parameters' numbers, as it has it itself: they are counted through its groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: own for name, own in state["state"].items()}, "param_groups": groups}


def by_name(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """The same by the parameters' names.

    Lightning's own counts through the module, which has another order than an optimizer with several groups.
    """
    known = {parameter: name for name, parameter in module.named_parameters()}
    names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: own for number, own in state["state"].items()}, "param_groups": groups}
