"""Sharded data parallelism: every process holds a part of each parameter and reads a part of each batch (FSDP2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmformer.adapters.merge import adapt_alike
from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec
from mmformer.spec import require


@dataclass(frozen=True)
class ParallelSpec:
    """How a run is spread over processes, and what of it is held at a time.

    Attributes:
        shard: processes that share the parameters, the optimizer's state and each batch evenly. On GPUs each has one.
            The losses are those of one process, but for dropout, which each draws for itself.
        activation_checkpointing: compute layers' activations again in the backward pass, to save memory; None: keep
            them.
    """

    shard: int = 1
    activation_checkpointing: ActivationCheckpointingSpec | None = None

    def __post_init__(self) -> None:
        require(self.shard >= 1, self, "shard", "at least 1")

    def check(self, batch_size: int, parts: int, lanes: int) -> None:
        """Refuse what does not divide.

        Raises:
            InputError: with the arithmetic.
        """
        if batch_size % (self.shard * parts):
            raise InputError(
                f"data.batch_size is {batch_size}, which trainer.accumulate_grad_batches × parallel.shard, "
                f"{parts} × {self.shard}, does not divide: take a multiple of {self.shard * parts}."
            )
        if lanes % self.shard:
            raise InputError(
                f"data.order.lanes is {lanes}, which parallel.shard, {self.shard}, does not divide: processes read "
                f"whole lanes. Set data.order.lanes to a multiple of {self.shard} (it is part of the order of the "
                f"samples, so choose it once for every number of processes that the run may have)."
            )


def shard(model: Model, mesh: Any) -> None:
    """Shard a model in place over a mesh: each layer of its stacks by itself, then all the rest together.

    The rest (tokenizers, heads, decoders' output) stays gathered for the whole of a forward pass, so that a decoder's
    loss may use the embedding of its tokens.
    """
    from torch.distributed.fsdp import fully_shard

    for stack in model.stacks.values():
        for layer in stack.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        stack.may_stop = False  # type: ignore[assignment]  # all processes run a layer, or none does
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def synchronise_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether backward passes send gradients; without, they are added up where they are."""
    if is_sharded(model):
        model.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def whole(value: Tensor) -> Tensor:
    """A sharded tensor as a whole one; every process has to ask. Any other tensor is returned as it is."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else full()


def sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all have, as another tensor is sharded; nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def drop_gathered(model: nn.Module) -> None:
    """Drop gathered parameters: FSDP2 keeps the outermost module's after a pass, and would go on with them."""
    from torch.distributed.fsdp import FSDPModule  # takes a while to import, which reading a run file need not wait for

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_model(model: Model) -> Model:
    """A model of its own on the CPU with the weights of a sharded one; every process has to ask, and gets it.

    A model that is not sharded is returned itself.
    """
    if not is_sharded(model):
        return model
    with torch.device("meta"):
        copy = model.spec.build()
        adapt_alike(copy, model)
    state = {name: whole(value.detach()).cpu() for name, value in model.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy.train(model.training)
