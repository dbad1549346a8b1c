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
    given = (work, dict(os.environ), args)
    torch.multiprocessing.start_processes(_work, given, nprocs, start_method="forkserver")  # type: ignore[no-untyped-call]


def _work(rank: int, work: Callable[..., None], environment: Mapping[str, str], args: tuple[object, ...]) -> None:
    _begin(environment)
    work(rank, *args)


def _begin(environment: Mapping[str, str]) -> None:
    """As a process of its own would, with today's environment: the one that it is made from may be old."""
    os.environ.clear()
    os.environ.update(environment)


def command(log: Path, words: tuple[str, ...], limit: float = 180.0) -> int:
    """Run mmformer in as many processes as ``--parallel.…`` among its words says, as torchrun would; the exit code.

    Args:
        log: a file that what they say is added to.
        limit: seconds that they may take.
    """
    assert not any(word.startswith("--parallel.") and "=" in word for word in words), "a number stands by itself"
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
        environment = {**os.environ, **(given if world > 1 else {})}
        processes.append(context().Process(target=_command, args=(log, words, environment)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _command(log: Path, words: tuple[str, ...], environment: Mapping[str, str]) -> None:
    _begin(environment)
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
