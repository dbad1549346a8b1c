"""Models that no process ever holds whole: built on the meta device, spread, and then given their weights in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmformer.adapters.adapter import Adapted, begun
from mmformer.adapters.merge import adapt_alike, adapted
from mmformer.models.first_weights import drawn
from mmformer.models.model import Model
from mmformer.nn.layer import LayerSpec
from mmformer.parallel.sharding import local_part, pipeline_of, sharded_as, whole


def allocate(model: Model, seed: int, device: torch.device, offloaded: bool = False) -> None:
    """Give a model that is spread, and has no data yet, its first weights: this process's parts of one process's.

    Each module is drawn whole, and let go once it was cut: besides its parts, a process holds the largest of them.

    Args:
        device: where the model computes.
        offloaded: parameters are in main memory (``shard``).
    """
    kept = torch.device("cpu") if offloaded else device
    stages = pipeline_of(model)
    elsewhere = set() if stages is None else stages.elsewhere

    def given(value: Tensor) -> Tensor:
        """Data for what has none, but for what only other stages have. What spreading made keeps its own."""
        if value in elsewhere:
            return value
        place = kept if isinstance(value, nn.Parameter) else device
        return torch.empty_like(value, device=place) if value.is_meta else value.to(place)

    model._apply(given)  # type: ignore[no-untyped-call]
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.device("meta"):
        twin = model.spec.build()
    with torch.device("cpu"):
        for name, value in drawn(twin, seed):
            give(own[name], value)


def allocate_adapters(model: Model, seed: int) -> None:
    """Give the adapters of a model that is spread their first weights: this process's parts of one process's.

    To be done once it has the weights that are adapted, of which some adapters are made, and by all processes: these
    bring the weight of one linear map at a time together.
    """
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            linear = nn.Linear(module.in_features, module.out_features, device="meta")
            linear.weight = nn.Parameter(whole(module.weight.detach()).cpu())
            own, adapter = module.adapter, begun(name, linear, module.adapter.spec, module.adapter.blocks, seed)
            for key, value in adapter.named_parameters():
                give(own.get_parameter(key), value)


@torch.no_grad()
def give(own: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be spread, of which each process has a part; nothing is sent."""
    local_part(own).copy_(local_part(sharded_as(value.to(own.device, own.dtype), own)))


def folded(model: Model, seed: int) -> Model:
    """A model that runs as another one, which may have no data, with weights of its own: layers of a kind share them.

    It takes the memory of one layer of each kind, of which those are that are adapted alike. What trains of any of them
    trains.
    """
    with torch.device("meta"):
        small = model.spec.build()
    for name, stack in model.spec.stacks.items():
        layers = small.stack_of(name).layers
        specs = dict(zip(stack.applied, stack.layers, strict=True))
        firsts: dict[tuple[LayerSpec, Any], nn.Module] = {}
        for index, layer in enumerate(model.stack_of(name).layers):
            adapters = tuple((path, each.adapter.spec, each.adapter.blocks) for path, each in adapted(layer))
            layers[index] = firsts.setdefault((specs[index], adapters), layers[index])
    small.to_empty(device="cpu")
    small.initialise(seed)
    adapt_alike(small, model, seed)
    small.requires_grad_(False)
    parameters = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            parameters[name].requires_grad_(True)
    return small
