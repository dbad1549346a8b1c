"""Which parameters decay, which move at a rate of their own, and the groups that optimizers are told of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.names import matching
from mmformer.spec import require
from mmformer.training.freeze import LISTED


@dataclass(frozen=True)
class GroupSpec:
    """Parameters that move at a rate, or with a decay, of their own.

    Attributes:
        parameters: a pattern of their names, as in ``freeze``. Where several groups fit, the first one counts.
        lr_scale: their learning rate is the others' times this, on top of what layer-wise decay makes of it.
        weight_decay: theirs, also of those that would not decay; None: what they would have had.
    """

    parameters: str
    lr_scale: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.lr_scale > 0, self, "lr_scale", "positive (to keep parameters as they are, freeze them)")
        require(self.weight_decay is None or self.weight_decay >= 0, self, "weight_decay", "None or at least 0")
        acts = self.lr_scale != 1 or self.weight_decay is not None
        require(acts, self, "lr_scale", "other than 1 where weight_decay is null: the group would change nothing")


class Setting(NamedTuple):
    """How one parameter that trains is moved."""

    name: str
    parameter: nn.Parameter
    decays: bool  # whether it is of those that do, see ``decays``
    lr_scale: float  # its learning rate, as a share of the optimizer's
    weight_decay: float


def decays(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Every parameter that trains, with its name and whether weight decay applies to it.

    Matrices and convolution kernels decay. What does not: biases and gains (anything of one axis), and what a module
    lists as ``undecayed``: token embeddings, position tables, class tokens and registers, pooling queries,
    temperatures. Pulling those to zero would not make the function simpler, only smaller. A parameter that two modules
    share is told once, under its first name. What a module lists as ``unoptimised`` is left out: it moves that itself.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                if name in getattr(module, "unoptimised", ()):
                    continue
                free = parameter.ndim < 2 or name in getattr(module, "undecayed", ())
                yield (f"{prefix}.{name}" if prefix else name), parameter, not free


def listed_by(model: nn.Module, attribute: str) -> set[str]:
    """The names of the parameters that modules list under a class attribute."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name in getattr(module, attribute, ())
    }


def settings(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, groups: Sequence[GroupSpec] = ()
) -> list[Setting]:
    """The rate and the decay of every parameter that trains; see ``OptimizerSpec`` for the arguments.

    Raises:
        InputError: a group that no parameter is in.
    """
    listed = list(decays(model))
    chosen = _chosen([name for name, _, _ in listed], groups)
    found = []
    for name, parameter, own in listed:
        scale = 1.0 if layer_decay == 1 else layer_decay ** layers_above(model, name)
        decay, group = weight_decay if own else 0.0, chosen.get(name)
        if group is not None:
            scale *= group.lr_scale
            decay = decay if group.weight_decay is None else group.weight_decay
        found.append(Setting(name, parameter, own, scale, decay))
    return found


def _chosen(names: Sequence[str], groups: Sequence[GroupSpec]) -> dict[str, GroupSpec]:
    """The group of each parameter that is in one."""
    found: dict[str, GroupSpec] = {}
    for group in groups:
        own = [name for name in matching("optimizer.groups", names, group.parameters, more=LISTED) if name not in found]
        if not own:
            raise InputError(
                f"optimizer.groups: all that '{group.parameters}' fits is in the groups before it: put it before them."
            )
        found |= dict.fromkeys(own, group)
    return found


def layers_above(model: nn.Module, name: str) -> int:
    """How far below the end of its stack a parameter is: 0 for what follows the stack, 1 for its last layer.

    Layers that are applied several times count once.
    """
    assert isinstance(model, Model), "only what has stacks has layers"
    layer = re.match(r"stacks\.(\w+)\.layers\.(\d+)\.", name)
    if layer:
        return model.spec.stacks[layer[1]].distinct - int(layer[2])
    below = re.match(r"stacks\.(\w+)\.(?:position|input_norm)\.", name)
    if below:
        return model.spec.stacks[below[1]].distinct + 1
    part = re.match(r"(encoders|decoders)\.(\w+)\.(?:tokenizer|special|bridges)\b", name)
    if part:
        parts: Mapping[str, Any] = getattr(model.spec, part[1])
        return model.spec.stacks[parts[part[2]].stack].distinct + 1
    return 0


def parameter_groups(listed: Sequence[Setting]) -> list[dict[str, Any]]:
    """The optimizer's groups: all parameters of one decay and one share of the rate together."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for each in listed:
        groups.setdefault((each.weight_decay, each.lr_scale), []).append(each.parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_scale": lr_scale}
        for (weight_decay, lr_scale), parameters in groups.items()
    ]


def _trains(name: str, own: Setting | None, starts: Mapping[str, int]) -> str:
    return f"after {starts[name]}" if name in starts else "yes" if own else "no"


def parameter_table(
    model: nn.Module,
    lr: float,
    listed: Sequence[Setting],
    loaded: Collection[str] = (),
    starts: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Every parameter, as tab-separated text with a header: its shape, its size, its peak learning rate, its weight
    decay, whether it trains (or after how many updates, or without the optimizer, by itself), and whether it began with
    a loaded weight.
    """
    trained, alone = {each.name: each for each in listed}, listed_by(model, "unoptimised")
    lines = ["parameter\tshape\tsize\tlr\tweight_decay\ttrains\tloaded"]
    for name, parameter in model.named_parameters():
        own = trained.get(name)
        cells = (
            name,
            "x".join(map(str, parameter.shape)),
            parameter.numel(),
            f"{lr * own.lr_scale:.6g}" if own else 0.0,
            own.weight_decay if own else 0.0,
            "by itself" if name in alone and parameter.requires_grad else _trains(name, own, starts),
            "yes" if name in loaded else "no",
        )
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"
