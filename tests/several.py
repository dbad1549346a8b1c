"""Other processes of a test, made from one that has imported everything already: it takes seconds of each otherwise."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
DIMENSIONS = ("pipeline", "data", "shard", "expert", "context", "tensor")


def context() -> ForkServerContext:
    """Where to make processes; they begin as if they were new ones."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["mmformer.cli.main", "mmformer.training.fit"])
    return found


def spawn(work: Callable[..., None], args: tuple[object, ...], nprocs: int) -> None:
    """What ``torch.multiprocessing.spawn`` does."""
    context()
    torch.multiprocessing.start_processes(work, args, nprocs, start_method="forkserver")  # type: ignore[no-untyped-call]


def command(log: Path, words: tuple[str, ...], limit: float = 180.0) -> int:
    """Run mmformer in as many processes as ``--parallel.…`` among its words says, as torchrun would; the exit code.

    Args:
        log: a file that what they say is added to.
        limit: seconds that they may take.
    """
    world = math.prod(
        int(number)
        for name, number in itertools.pairwise(words)
        if name.removeprefix("--parallel.") in DIMENSIONS and name.startswith("--parallel.")
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "GROUP_RANK": "0"}
        given |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        given |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_WORLD_SIZE": "1"}
        processes.append(context().Process(target=_command, args=(log, words, given if world > 1 else {})))
    for process in processes:
        process.start()
    for process in processes:
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _command(log: Path, words: tuple[str, ...], environment: Mapping[str, Any]) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a run that a user starts
    said = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(said, stream)
    from pytorch_lightning.utilities import rank_zero_only

    from mmformer.cli.main import main

    rank_zero_only.rank = int(environment.get("RANK", "0"))  # which Lightning asks for when it is imported
    sys.exit(main(list(words)))
