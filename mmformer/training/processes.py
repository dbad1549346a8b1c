"""The processes of a run: how many Lightning is to start, or to find started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed import DistError
from torch.distributed.distributed_c10d import _get_default_store

from mmformer import collectives
from mmformer.errors import InputError, OtherProcessError
from mmformer.parallel.sharding import ParallelSpec


def is_first() -> bool:
    """Whether this is the process that checks, writes and prints. True where there is one alone."""
    return not getattr(rank_zero_only, "rank", 0)


def trainer_arguments(parallel: ParallelSpec, accelerator: str = "auto") -> dict[str, Any]:
    """What Lightning's Trainer is told of processes.

    On one machine it starts them itself, by calling this program again. Where torchrun or SLURM have started them, it
    takes those.

    Raises:
        InputError: another number of processes was started than the run is spread over, or there are too few GPUs.
    """
    started, nodes = _started()
    if started not in (None, parallel.shard):
        raise InputError(
            f"{started} processes were started ({started // nodes} on each of {nodes} machines), but parallel.shard is "
            f"{parallel.shard}: start {parallel.shard}, or set --parallel.shard {started}."
        )
    if parallel.shard == 1:
        return {"devices": 1}
    each, there = parallel.shard // nodes, torch.cuda.device_count()
    if accelerator != "cpu" and torch.cuda.is_available() and each > there:
        raise InputError(
            f"parallel.shard is {parallel.shard}, {each} processes with a GPU each on every machine, but there are "
            f"{there} GPUs here: set --parallel.shard {there * nodes}, or --trainer.accelerator cpu."
        )
    strategy = ModelParallelStrategy(data_parallel_size=parallel.shard, tensor_parallel_size=1)
    arguments: dict[str, Any] = {"devices": each, "num_nodes": nodes, "strategy": strategy}
    # In a shell that SLURM gave, Lightning would wait for tasks that nobody starts.
    return arguments if started else arguments | {"plugins": [LightningEnvironment()]}


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


@contextmanager
def failing_together() -> Iterator[None]:
    """The first process that fails in here raises its own error, and all others OtherProcessError.

    Left alone, they would fail at the connection to it, which says nothing about the cause.
    """
    try:
        yield
    except Exception as error:
        if collectives.world_size() == 1:
            raise
        code = 2 if isinstance(error, InputError) else 1
        own = False
        try:
            store = _get_default_store()
            own = store.add("mmformer/failures", 1) == 1
            if own:
                store.set("mmformer/code", str(code))
            else:
                code = int(store.get("mmformer/code"))
        except DistError:  # the first process, which keeps the store, has gone
            pass
        if own:
            raise
        raise OtherProcessError(code) from error


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
