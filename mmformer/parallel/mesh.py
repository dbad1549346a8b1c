"""How processes share out a run: along which dimensions, and who reads which part of a batch.

Processes stand on a mesh with named dimensions, the outermost first: ``pipeline`` (layers, one after the other),
``data`` (replicas), ``shard`` (parts of the parameters), ``expert`` (the experts, and parts of the other parameters),
``context`` (parts of each row), ``tensor`` (parts of each product). Neighbours in the innermost have neighbouring
numbers, so that those that say most to each other share a machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, check_kept
from mmformer.parallel.dividing import ContextMethod, check_context, check_experts, check_tensor
from mmformer.parallel.stages import check_pipeline
from mmformer.spec import require

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

DIMENSIONS = ("pipeline", "data", "shard", "expert", "context", "tensor")
"""Of the mesh, outermost first; each is a field of ParallelSpec."""

READING = ("data", "shard", "expert")
"""Those along which processes have different parts of a batch."""

STAGED = ("pipeline", "data", "shard")
"""Those that go together with a pipeline."""

HOLDING = ("shard", "expert", "context")
"""Those along which each process has a part of the parameters, and gradients are added up.

Experts are whole along ``expert`` (``parallel/experts.py``).
"""


@dataclass(frozen=True)
class ParallelSpec:
    """How a run is spread over processes, and what of it is held at a time.

    There are pipeline × data × shard × expert × context × tensor processes, on GPUs each with one. The losses are those
    of one process, but for dropout, which each part of a batch, of its rows and of the layers draws for itself.
    Parameters and what the optimizer keeps are float32 in any case, and gradients are added up in it;
    ``trainer.precision`` says what products are computed in.

    Attributes:
        pipeline: processes, or groups of them, that have a share of a language model's layers each, one after the other
            (stages; 1F1B, Narayanan et al. 2021, Megatron-LM, §2.2.1). The first stages have a layer more where they do
            not divide; the first one has the embeddings, the last one the final norm and the logits. An update's
            micro-batches, ``trainer.accumulate_grad_batches``, are in different stages at a time; a stage waits for
            (pipeline - 1) / (micro-batches + pipeline - 1) of the time, and there have to be as many as stages. A table
            of tokens that logits are tied to is in the first and the last stage. Goes with ``data`` and ``shard``.
        data: replicas: each has all that ``shard`` and ``tensor`` share out, and reads a part of each batch (data
            parallel; beside ``shard``, hybrid sharding: parameters are gathered among ``shard`` processes, and
            gradients added up over all).
        shard: processes that share the parameters, the optimizer's state and each batch evenly (FSDP2).
        expert: processes that share out the experts of each mixture of experts, and all else as ``shard`` does. Each
            has and computes experts / expert of them. Tokens travel to their experts and back (GShard, Lepikhin et al.
            2020, §3.2) in place of parameters: of each, 4 · top · D numbers in a layer's forward and backward pass.
            What a process has of the experts is sharded over ``shard``.
        context: processes that share out the places of each row, and the parameters as ``shard`` does, for texts whose
            activations do not fit. Decoders that read no encoder alone can be computed so, with softmax attention and
            dense feed-forwards; each process has a whole row where it enters a stack and where it leaves it.
        context_method: how attention reaches what other processes have: ``gather`` brings all keys and values to each
            (Grattafiori et al. 2024, Llama 3, §3.3.2), which any heads allow and few key and value heads make cheap;
            ``ulysses`` exchanges places for heads and back (Jacobs et al. 2023, §3), which sends less where processes
            are many, computes sparse patterns in blocks, and needs context × tensor to divide the heads. Of texts that
            are not packed, it needs no mask, and ``gather`` one for a process's places and those before them.
        tensor: processes that compute the same part of a batch together. The heads of softmax attention, its key and
            value heads too, and the hidden units of dense feed-forwards are shared out, in self-attention and in
            reading memory. All else is computed by each of them in whole: embeddings, norms, heads, decoders' outputs,
            other mixers (linear attention, Mamba, hashed attention, convolutions …), experts, attention over a sparse
            pattern whose position biases scores, and what pools and resamplers attend by. Within what is shared out,
            heads and units that take the same place in two processes drop out together. Of projections that are fused
            (queries with keys and values, gates with units), each pass moves rows of weights between the processes, so
            that parameters are stored in one process's order whatever ``tensor`` is: bytes that do not grow with the
            batch.
        cpu_offload: keep what ``shard`` shares out, parameters and the optimizer's state, in main memory, where the
            optimizer updates it too; a layer's parameters come to the GPU as it runs (FSDP2's CPUOffloadPolicy). On
            CPUs, where all is in main memory, it changes nothing. Goes with ``data``, ``context`` and ``tensor``.
        activation_checkpointing: compute layers' activations again in the backward pass, to save memory; None: keep
            them.
        compile: make a program of fused operations of each layer (torch.compile) when it first runs, which takes from
            seconds to minutes, and again for rows of other lengths. FSDP2 gathers all of a layer in float32 then.
    """

    pipeline: int = 1
    data: int = 1
    shard: int = 1
    expert: int = 1
    context: int = 1
    context_method: ContextMethod = "gather"
    tensor: int = 1
    cpu_offload: bool = False
    activation_checkpointing: ActivationCheckpointingSpec | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.context_method in get_args(ContextMethod), self, "context_method", "'gather' or 'ulysses'")
        chosen = self.context > 1 or self.context_method == "gather"
        require(chosen, self, "context_method", "left alone where context is 1")
        require(self.shard > 1 or not self.cpu_offload, self, "cpu_offload", "false where shard is 1")
        with_it = self.pipeline == self.expert == 1  # gradients of tables in two stages, and of experts, are apart
        require(with_it or not self.cpu_offload, self, "cpu_offload", "false beside pipeline and expert")
        again = self.activation_checkpointing
        whole = again is None or again.keep == "nothing"  # what a program makes on the way cannot be told apart
        require(
            whole or not self.compile, self, "compile", "false where activation_checkpointing.keep is not 'nothing'"
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the mesh's dimensions."""
        return tuple(getattr(self, name) for name in DIMENSIONS)

    @property
    def processes(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)

    @property
    def readers(self) -> int:
        """How many parts a batch has: processes of one context or tensor group read the same."""
        return math.prod(getattr(self, name) for name in READING)

    @property
    def arithmetic(self) -> str:
        """How many processes there are, and why."""
        return f"{' × '.join(f'parallel.{name}' for name in DIMENSIONS)} = {_product(self.sizes)} = {self.processes}"

    def check(self, model: ModelSpec, batch_size: int, parts: int, lanes: int) -> None:
        """Refuse what does not divide.

        Raises:
            InputError: with the arithmetic.
        """
        readers, reading = self.readers, [getattr(self, name) for name in READING]
        names = " × ".join(f"parallel.{name}" for name in READING)
        if batch_size % (readers * parts):
            raise InputError(
                f"data.batch_size is {batch_size}, which trainer.accumulate_grad_batches × {names}, "
                f"{_product((parts, *reading))}, does not divide: take a multiple of {readers * parts}."
            )
        if lanes % readers:
            raise InputError(
                f"data.order.lanes is {lanes}, which {names}, {_product(reading)}, does not divide: processes read "
                f"whole lanes. Set data.order.lanes to a multiple of {readers} (it is part of the order of the "
                f"samples, so choose it once for every number of processes that the run may have)."
            )
        if self.activation_checkpointing is not None:
            check_kept(model, self.activation_checkpointing)
        if self.pipeline > 1:
            self._check_staged()
            check_pipeline(model, self.pipeline, parts)
        if self.expert > 1:
            check_experts(model, self.expert)
        if self.context > 1:
            check_context(model, self.context, self.context_method, self.tensor)
        if self.tensor > 1:
            check_tensor(model, self.tensor)

    def _check_staged(self) -> None:
        """Refuse dimensions that do not go with a pipeline."""
        others = [name for name in DIMENSIONS if name not in STAGED and getattr(self, name) > 1]
        if others:
            shard = self.shard * getattr(self, others[0])
            raise InputError(
                f"The run is spread over {self.arithmetic}, but stages of a pipeline are replicated and sharded, not "
                f"divided further: set parallel.{others[0]} to 1 (and parallel.shard to {shard}, for as many "
                f"processes), or parallel.pipeline to 1."
            )


def _product(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def make_mesh(spec: ParallelSpec, device: str) -> DeviceMesh:
    """The mesh of all processes; each has to ask, once they have met.

    Args:
        device: the type of their devices.
    """
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, spec.sizes, mesh_dim_names=DIMENSIONS)


def readers_of(mesh: DeviceMesh) -> ProcessGroup | None:
    """The processes that have different parts of a batch, this one among them, by the number of the part; None: all.

    Each process has to ask, once.
    """
    return _along(mesh, READING)


def holders_of(mesh: DeviceMesh, readers: ProcessGroup | None) -> ProcessGroup | None:
    """The processes that have different tokens, parts of rows among them; otherwise as ``readers_of``.

    Args:
        readers: what that has said, which are these where rows are whole.
    """
    return readers if mesh["context"].size() == 1 else _along(mesh, (*READING, "context"))


def _along(mesh: DeviceMesh, names: Sequence[str]) -> ProcessGroup | None:
    import torch.distributed as dist

    others = [DIMENSIONS.index(name) for name in DIMENSIONS if name not in names]
    if all(mesh.mesh.shape[index] == 1 for index in others):
        return None
    order = (*others, *(DIMENSIONS.index(name) for name in names))
    places = math.prod(mesh.mesh.shape[index] for index in others)
    groups = mesh.mesh.permute(order).reshape(places, -1).tolist()  # those that have the same place along the others
    own: ProcessGroup
    own, _ = dist.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
    return own


def stages_of(mesh: DeviceMesh) -> ProcessGroup | None:
    """The processes that have the stages of this one's model, in turn; None: each has all of it."""
    return mesh["pipeline"].get_group() if mesh["pipeline"].size() > 1 else None


def parameters_mesh(mesh: DeviceMesh, holding: Sequence[str] = HOLDING) -> DeviceMesh | None:
    """The mesh that FSDP2 takes; None: nothing is to be sharded or replicated.

    Its last dimension is the one over which parameters are sharded, before it stands one of replicas where there are
    some.

    Args:
        holding: the dimensions along which they are sharded, two or more of them as one.
    """
    names = [name for name in holding if mesh[name].size() > 1]
    held = mesh[names[0]] if len(names) == 1 else mesh[holding[0]]
    if len(names) > 1:
        held = mesh[tuple(names)]._flatten("_".join(names))
    if mesh["data"].size() > 1:
        return type(mesh)._concatenate([mesh["data"], held])  # a slice of the mesh warns of flattened dimensions
    return held if held.size() > 1 else None
