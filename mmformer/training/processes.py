"""The processes of a run: how many Lightning is to start, or to find started."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _get_default_store, default_pg_timeout

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.parallel.meeting import let_no_more_in, open_own_store
from mmformer.parallel.mesh import ParallelSpec, holders_of, make_mesh, readers_of, stages_of
from mmformer.training.before_meeting import Launcher
from mmformer.training.layouts import by_name, held, load_parts, load_whole
from mmformer.training.unpickling import as_data


def is_first() -> bool:
    """Whether this is the process that checks, writes and prints. True where there is one alone."""
    return not getattr(rank_zero_only, "rank", 0)


def check_processes(parallel: ParallelSpec, accelerator: str = "auto") -> None:
    """Refuse other processes than a run is spread over; to be asked before anything starts.

    Raises:
        InputError: another number of processes was started, or there are too few GPUs.
    """
    started, nodes = _started()
    if started not in (None, parallel.processes):
        raise InputError(
            f"{started} processes were started ({started // nodes} on each of {nodes} machines), but the run is spread "
            f"over {parallel.arithmetic}: start {parallel.processes}, or give these dimensions the product "
            f"{started}{_suggestion(parallel, started)}."
        )
    each, there = parallel.processes // nodes, torch.cuda.device_count()
    if parallel.processes > 1 and accelerator != "cpu" and torch.cuda.is_available() and each > there:
        raise InputError(
            f"The run is spread over {parallel.arithmetic}, {each} processes with a GPU each on every machine, but "
            f"there are {there} GPUs here: give these dimensions the product {there * nodes}"
            f"{_suggestion(parallel, there * nodes)}, or set --trainer.accelerator cpu."
        )


def _suggestion(parallel: ParallelSpec, processes: int) -> str:
    """What to set for so many processes, where one number does."""
    rest = parallel.processes // parallel.shard
    return f" (--parallel.shard {processes // rest})" if processes % rest == 0 else ""


def trainer_arguments(parallel: ParallelSpec, accelerator: str = "auto") -> dict[str, Any]:
    """What Lightning's Trainer is told of processes.

    On one machine it starts them itself, by calling this program again. Where torchrun or SLURM have started them, it
    takes those.

    Raises:
        InputError: see ``check_processes``.
    """
    check_processes(parallel, accelerator)
    started, nodes = _started()
    if parallel.processes == 1:
        return {"devices": 1}
    each = parallel.processes // nodes
    arguments: dict[str, Any] = {"devices": each, "num_nodes": nodes, "strategy": MeshStrategy(parallel)}
    # In a shell that SLURM gave, Lightning would wait for tasks that nobody starts.
    return arguments if started else arguments | {"plugins": [LightningEnvironment()]}


class MeshStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that are spread from outside, over a mesh of ours in place of its own."""

    def __init__(self, parallel: ParallelSpec) -> None:
        super().__init__(data_parallel_size=parallel.readers, tensor_parallel_size=parallel.tensor)
        self.parallel = parallel
        self.store: Store | None = None  # what the processes share, once they have met
        self.met: Callable[[Store], None] = lambda store: None  # who is told of it then
        self._meeting: TCPStore | None = None  # as long as it is held here, all find it
        self._state: Path | None = None

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def of_first(self, state: Path | None) -> Path | None:
        """The state that the first process goes on from, which is the one that looks; None: it begins.

        Processes meet here, but for a first one that is to start the others only now: they are told when it has.
        """
        self._state = state
        assert self.cluster_environment is not None
        if self.cluster_environment.creates_processes_externally:
            self._meet()
        return self._state

    def _meet(self) -> None:
        """Once, have the processes meet, and hear from the first one."""
        if self.store is None:
            self._meeting = open_own_store((self._timeout or default_pg_timeout).total_seconds())
            self._setup_distributed()
            start, self._state = self.broadcast((uuid4().hex, self._state))
            if self._meeting is not None and is_first():
                let_no_more_in(self._meeting)
            self.store = _own_store(start)
            self.met(self.store)

    def setup_environment(self) -> None:
        self._meet()
        assert self.lightning_module is not None
        self._device_mesh = make_mesh(self.parallel, self.root_device.type)
        # It advises on how single numbers are added up, and on what is gathered for a bundle.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        self.lightning_module._device_mesh = self._device_mesh  # where the task asks for it
        readers = readers_of(self._device_mesh)
        collectives.divide_batches(readers, holders_of(self._device_mesh, readers))
        collectives.divide_model(stages_of(self._device_mesh), self.root_device)

    def setup(self, trainer: pl.Trainer) -> None:
        """Not Lightning's for this kind, which would give data to the parameters that other stages have."""
        ParallelStrategy.setup(self, trainer)

    def _get_process_group_backend(self) -> str:
        """What is kept in main memory beside GPUs is sent from there, too: LAMB's norms, say, and Adafactor's means."""
        backend: str = super()._get_process_group_backend()
        return "cpu:gloo,cuda:nccl" if self.parallel.cpu_offload and backend == "nccl" else backend

    def model_to_device(self) -> None:
        """Nothing: the task has built it there, and spread it."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return held(self.model)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """By the parameters' names. Lightning's would have an optimizer that has made no update yet make one."""
        assert self.model is not None
        own = getattr(optimizer, "_optimizer", optimizer)
        return by_name(own.state_dict(), own, self.model)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Hand over what this process has of a state: what becomes of it is ``Checkpoint``'s."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each process its part, whatever processes wrote it; the path is the same in all."""
        path = Path(checkpoint_path)
        assert self.lightning_module is not None
        load = load_whole if path.is_file() else load_parts
        with as_data(path):
            return load(self.lightning_module, self.optimizers, path)


def _started() -> tuple[int | None, int]:
    """How many processes torchrun or SLURM have started, None where they have not, and on how many machines."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        world = int(environment["WORLD_SIZE"])
        return world, world // int(environment["LOCAL_WORLD_SIZE"])
    # A shell within an allocation (salloc, or sbatch's own script) has tasks to come, but is none of them.
    if "SLURM_PROCID" in environment and environment.get("SLURM_STEP_ID", "").isdecimal():
        tasks = int(environment["SLURM_NTASKS"])
        if tasks > 1:  # one is a shell on a machine of its own, or a run that starts the others itself
            return tasks, int(environment["SLURM_NNODES"])
    return None, 1


def _own_store(start: str) -> Store:
    """A connection of its own to the store that the processes met by: another thread may wait in the run's.

    Args:
        start: a name that no other start of the run has, should the store outlast the processes.
    """
    store = _get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        store = TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return PrefixStore(f"mmformer/{start}", store)


def leave(code: int) -> None:
    """Exit here and now, where processes were joined; elsewhere do nothing.

    The threads that join them (gloo's) may abort a process that ends in order, after all is done. Processes that
    Lightning started say 0: on any other code it kills the first one, which would say the reason's.
    """
    if collectives.world_size() == 1:
        return
    spared = not is_first() and _started()[0] is None and dist.get_backend() == "gloo"
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if spared else code)
