"""Models over several processes, applied from outside: shared out (tensor parallel), sharded and replicated (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmformer import collectives
from mmformer.adapters.adapter import Adapted
from mmformer.adapters.merge import adapt_alike
from mmformer.models.model import Model
from mmformer.nn.attention import Attention
from mmformer.nn.feedforward import FeedForward
from mmformer.nn.grouped import GroupedLinear
from mmformer.nn.layer import Layer
from mmformer.parallel.compiling import compile_layers
from mmformer.parallel.dividing import ContextMethod
from mmformer.parallel.mesh import parameters_mesh

if TYPE_CHECKING:
    from mmformer.parallel.pipeline import Pipeline


def spread(
    model: Model,
    mesh: Any,
    dtype: torch.dtype = torch.float32,
    context_method: ContextMethod = "gather",
    compiled: bool = False,
    offloaded: bool = False,
) -> None:
    """Spread a model in place over a mesh (``parallel/mesh.py``); activation checkpointing comes before it.

    It is cut into stages, its layers' products are shared out, then the places of its rows, then its experts; then what
    each process has of the other parameters is sharded.

    Args:
        dtype: what autocast computes products in; see ``shard``.
        context_method: how attention reaches places of other processes, where the mesh shares them out.
        compiled: whether layers are compiled (``parallel/compiling.py``), before they are sharded.
        offloaded: see ``shard``.
    """
    if mesh["pipeline"].size() > 1:
        from mmformer.parallel.pipeline import cut

        cut(model, mesh)
    if mesh["tensor"].size() > 1:
        from mmformer.parallel.tensor import share_out  # DTensors take a while to import

        share_out(model, mesh["tensor"])
    if mesh["context"].size() > 1:
        from mmformer.parallel.context import cut_rows

        cut_rows(model, mesh, context_method)
    experts: frozenset[nn.Parameter] = frozenset()
    if mesh["expert"].size() > 1:
        from mmformer.parallel.experts import spread_experts

        experts = spread_experts(model, mesh, gathered_in(dtype))
    if compiled:
        compile_layers(model)
    if (held := parameters_mesh(mesh)) is not None:
        # What is done as the maps of a group begin and end would cut a layer's program into pieces.
        shard(model, held, torch.float32 if compiled else dtype, experts, offloaded)
    for stack in model.stacks.values():
        stack.may_stop = False  # type: ignore[assignment]  # all processes run a layer, or none does


def shard(
    model: Model,
    mesh: Any,
    dtype: torch.dtype = torch.float32,
    spread: frozenset[nn.Parameter] = frozenset(),
    offloaded: bool = False,
) -> None:
    """Shard a model in place over a mesh: each layer of its stacks by itself, then all the rest together.

    The rest (tokenizers, heads, decoders' output) stays gathered for the whole of a forward pass, so that a decoder's
    loss may use the embedding of its tokens. Parameters are kept, and gradients added up, in float32. Of a layer, the
    linear maps that autocast rounds whenever it runs are gathered by themselves, rounded already, which halves their
    bytes and leaves the products what they are in one process; norms, routers and recurrences, which compute in
    float32, are gathered in it. A model that is sharded so has to run under that autocast, evaluation too.

    Args:
        mesh: of one dimension, over which parameters are sharded, or of two, over the first of which they are
            replicated.
        dtype: what autocast computes products in.
        spread: parameters of which nothing is left to do.
        offloaded: each process keeps its part of the parameters, and gets that of the gradients, in main memory.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    kept = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloaded else OffloadPolicy()

    stages = pipeline_of(model)
    elsewhere = set() if stages is None else stages.elsewhere
    others = {*spread, *(own for own in elsewhere if isinstance(own, nn.Parameter))}
    for stack in model.stacks.values():
        for layer in stack.layers:  # type: ignore[union-attr]
            if not elsewhere.isdisjoint(layer.parameters()):
                continue
            if dtype != torch.float32 and (maps := _rounded_maps(layer, spread)):
                fully_shard(maps, mesh=mesh, mp_policy=gathered_in(dtype), offload_policy=kept)
            fully_shard(layer, mesh=mesh, ignored_params=others, offload_policy=kept)
    fully_shard(model, mesh=mesh, ignored_params=others, offload_policy=kept)


def gathered_in(dtype: torch.dtype) -> Any:
    """FSDP2's policy for parameters that are gathered in a precision, and whose gradients are added up in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # Not what the first of them is given: autocast rounds that.
    return MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _rounded_maps(layer: Layer, spread: frozenset[nn.Parameter]) -> list[nn.Module]:
    """Linear maps that run whenever a layer does, under autocast: of softmax attention, feed-forwards and experts.

    FSDP2 frees what a group gathered once all of it has run. Other mixers (Mamba, linear attention …) compute with
    matrices outside their maps or without autocast, and so may adapters.
    """
    parts = (layer.mixer, layer.cross, layer.feedforward)
    inside = [module for part in parts if isinstance(part, Attention | FeedForward) for module in part.modules()]
    maps = [m for m in inside if isinstance(m, nn.Linear | GroupedLinear) and not isinstance(m, Adapted)]
    return [m for m in maps if m.weight not in spread]


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_spread(model: nn.Module) -> bool:
    """Whether ``spread`` was applied, over several processes."""
    return pipeline_of(model) is not None or any(mesh_of(parameter) is not None for parameter in model.parameters())


def pipeline_of(model: nn.Module) -> Pipeline | None:
    """The stages of a model that was cut into some."""
    return getattr(model, "pipeline", None)


def synchronise_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether backward passes send gradients; without, they are added up where they are."""
    if is_sharded(model):
        model.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def mesh_of(value: Tensor) -> Any:
    """The mesh that a tensor is spread over; None: it is as in one process."""
    return getattr(value, "device_mesh", None)


def by_mesh(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors in groups that are spread alike: an operation over a list of tensors takes no others together."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(mesh_of(tensor), []).append(tensor)
    return list(groups.values())


def whole(value: Tensor) -> Tensor:
    """A sharded tensor as a whole one; every process has to ask. Any other tensor is returned as it is.

    It is on the devices of the mesh, which is what processes send from, also where its parts are in main memory.
    """
    mesh = mesh_of(value)
    gathered: Tensor = value if mesh is None else value.to(mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return gathered


def local_part(value: Tensor) -> Tensor:
    """What this process has of a tensor; nothing is sent."""
    local = getattr(value, "to_local", None)
    return value if local is None else local()


def sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all have, as another tensor is sharded; nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    spread = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return spread.to(like.device)  # which may be main memory


def drop_gathered(model: nn.Module) -> None:
    """Drop gathered parameters: FSDP2 keeps the outermost module's after a pass, and would go on with them."""
    from torch.distributed.fsdp import FSDPModule  # takes a while to import, which reading a run file need not wait for

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a model that is spread, as one process has it, by its name; every process has to ask for all."""
    stages = pipeline_of(model)
    for name, value in model.state_dict().items():
        own = value if value.is_meta else whole(value.detach())
        yield name, own if stages is None else stages.told(own, stages.holders[name][0])


def whole_model(model: Model) -> Model | None:
    """A model of its own on the CPU with the weights of one that is spread; every process has to ask.

    The first process gets it, the others None: besides its parts, each of these holds one whole tensor at a time. A
    model that is not spread is returned itself.
    """
    if not is_spread(model):
        return model
    if collectives.rank() > 0:
        for _ in whole_state(model):
            pass
        return None
    with torch.device("meta"):
        copy = model.spec.build()
        adapt_alike(copy, model)
    copy.load_state_dict({name: value.cpu() for name, value in whole_state(model)}, assign=True)
    return copy.train(model.training)
