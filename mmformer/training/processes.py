"""The processes of a run: how many Lightning is to start, or to find started."""

from __future__ import annotations

import os
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only

from mmformer.errors import InputError
from mmformer.parallel.sharding import ParallelSpec


def is_first() -> bool:
    """Whether this is the process that checks, writes and prints. True where there is one alone."""
    return not getattr(rank_zero_only, "rank", 0)


def trainer_arguments(parallel: ParallelSpec) -> dict[str, Any]:
    """What Lightning's Trainer is told of processes.

    On one machine it starts them itself, by calling this program again. Where torchrun or SLURM have started them, it
    takes those.

    Raises:
        InputError: another number of processes was started than the run is spread over.
    """
    started, nodes = _started()
    if started not in (None, parallel.shard):
        raise InputError(
            f"{started} processes were started ({started // nodes} on each of {nodes} machines), but parallel.shard is "
            f"{parallel.shard}: start {parallel.shard}, or set --parallel.shard {started}."
        )
    if parallel.shard == 1:
        return {"devices": 1}
    strategy = ModelParallelStrategy(data_parallel_size=parallel.shard, tensor_parallel_size=1)
    return {"devices": parallel.shard // nodes, "num_nodes": nodes, "strategy": strategy}


def _started() -> tuple[int | None, int]:
    """How many processes torchrun or SLURM have started, None where they have not, and on how many machines."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        world = int(environment["WORLD_SIZE"])
        return world, world // int(environment["LOCAL_WORLD_SIZE"])
    # A shell within an allocation (salloc, or sbatch's own script) has tasks to come, but is none of them.
    if "SLURM_PROCID" in environment and environment.get("SLURM_STEP_ID", "").isdecimal():
        return int(environment["SLURM_NTASKS"]), int(environment["SLURM_NNODES"])
    return None, 1
