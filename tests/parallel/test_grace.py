"""torchrun waits for processes that it has told to end: they may have a checkpoint to write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from launched import ROOT
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext, SubprocessContext

from mmformer.errors import InputError
from mmformer.parallel.torchrun import GRACE, main

WORKER = """
import signal, sys, time
from pathlib import Path

def ends(*_):
    time.sleep(33)
    Path("checkpoint").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, ends)
Path("ready").touch()
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("words", "grace"), [([], GRACE), (["--grace", "45"], 45), (["--grace=45"], 45)])
def test_torchrun_gives_so_long(words: list[str], grace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(PContext, "close", PContext.close)  # what it replaces is put back
    monkeypatch.setattr(run, "main", called.append)
    main([*words, "--standalone", "script.py", "--grace", "1"])
    context = MagicMock(_tail_logs=[])
    SubprocessContext.close(context, signal.SIGTERM)
    context._close.assert_called_once_with(death_sig=signal.SIGTERM, timeout=grace)
    assert called == [["--standalone", "script.py", "--grace", "1"]], "the script's own words stay"


@pytest.mark.parametrize("told", [["0"], ["-3"], ["long"], []])
def test_seconds_that_are_none(told: list[str]) -> None:
    with pytest.raises(InputError, match=r"--grace is '.*': give the seconds"):
        main(["--grace", *told])


@pytest.mark.slow
def test_a_process_that_takes_longer_than_torchrun_would_wait(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    words = ["--grace", "120", "--standalone", "--nnodes", "1", "--nproc-per-node", "1", "worker.py"]
    agent = subprocess.Popen(
        [sys.executable, "-m", "mmformer.parallel.torchrun", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "ready").exists() and agent.poll() is None:
        time.sleep(0.1)
    agent.terminate()
    said = agent.communicate(timeout=240)[0]
    assert (tmp_path / "checkpoint").exists(), said
