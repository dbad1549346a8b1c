"""Runs of two processes of which one dies, or both do, by SIGKILL in whatever they do together."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

import several
import torch
from killed import Moment, assert_same_end, watched

PLACES = {
    "checkpoint": (
        "mmformer.training.background:HostCopy.take",
        "mmformer.training.checkpoint:write_part",
        "mmformer.training.writing_state:save",
        "torch.distributed.checkpoint.filesystem:_write_item",
        "mmformer.training.writing_state:content_of",
        # the first process alone:
        "mmformer.training.writing_state:write_state",
        "mmformer.training.writing_state:_check_there",
        "mmformer.training.checkpoint:seal",
        "mmformer.training.checkpoint:discard",
        "mmformer.files:sync",
        "pathlib:Path.rename",
        "shutil:rmtree",
    ),
    "evaluation": (
        "mmformer.training.evaluate:evaluate",
        "mmformer.training.evaluate:of_all_ranks",
        "mmformer.training.evaluate:whole_model",
        "mmformer.evaluation.metric:Metric.update",
        # the first process alone:
        "mmformer.training.evaluate:write_bundle",
    ),
}
"""Where they die, by what they do there."""

LIMIT = 120.0
"""Seconds that they may take."""


def fit_together(
    file: Path, output: Path, moments: Mapping[int, Moment] | None = None, power: bool = False
) -> list[int | None]:
    """Begin a run, or go on with it, in two processes; their exit codes.

    Beside the output lie the processes' ``keys-….jsonl`` and, of those that came to their end, ``calls-….json``, as in
    ``killed.fit_alone``.

    Args:
        moments: process -> when it kills itself.
        power: whether the other one then goes at once, as on a machine that loses its power; otherwise it ends by
            itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moments = moments or {}
    given = [(rank, port, file, output, moments.get(rank), bool(moments)) for rank in range(2)]
    processes = [several.context().Process(target=_fit, args=each) for each in given]
    for process in processes:
        process.start()
    if power:
        wait([process.sentinel for process in processes], LIMIT)
        for process in processes:
            process.kill()
    for process in processes:
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"a process went on for {LIMIT:g} s: {said(output)}")
    return [process.exitcode for process in processes]


def _fit(rank: int, port: int, file: Path, output: Path, moment: Moment | None, is_to_die: bool) -> None:
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    given |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= given | {"TORCHELASTIC_RUN_ID": "test"}
    os.chdir(several.ROOT)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a run that a user starts
    log = os.open(output.parent / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    from pytorch_lightning.utilities import rank_zero_only

    from mmformer.cli.main import main
    from mmformer.training import presence, processes

    rank_zero_only.rank = rank  # which Lightning asks for when it is imported
    if is_to_die:  # whoever is left is not to wait for longer than a test can
        presence.Watch.__init__.__defaults__ = ((), 0.5, 4.0)
    calls = watched(output.parent / f"keys-{rank}.jsonl", PLACES, moment)
    leave = processes.leave

    def tells(code: int) -> None:
        (output.parent / f"calls-{rank}.json").write_text(json.dumps(calls))
        leave(code)

    processes.leave = tells
    words = ("--config", str(file), "--output", str(output), "--parallel.shard", "2", "--continue")
    sys.exit(main(["fit", *words]))


def assert_both_survive(
    file: Path, whole: Path, output: Path, *deaths: Mapping[int, Moment], power: bool = False
) -> None:
    """A run of two processes that died so, one time after the other, ends as the whole one: in the same bits."""
    for moments in deaths:
        codes = fit_together(file, output, moments, power)
        told = f"{', '.join(f'process {rank} {moment}' for rank, moment in moments.items())}: exit codes {codes}"
        assert any(codes[rank] == -signal.SIGKILL for rank in moments), f"{told}: {said(output)}"
        assert all(codes), f"{told}: {said(output)}"
    assert fit_together(file, output) == [0, 0], said(output)
    assert_same_end(whole, output)


def said(output: Path) -> str:
    return (output.parent / "log.txt").read_text()[-2000:]
