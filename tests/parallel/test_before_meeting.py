"""Processes end soon, and say why, where one of them is gone or told to end before all have met."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import several
from launched import ROOT
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from tiny import tiny_run, write_shards
from torch.distributed import TCPStore

from mmformer.config import to_yaml
from mmformer.training.before_meeting import BeforeMeeting, Launcher

# ------------------------------------------------------------------------------------------- one process, for itself


def waits(folder: Path, is_first: bool) -> None:
    """Begin a process that is not there, or be started by one that is gone, and wait for it inside of torch."""
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 2)
    launcher = Launcher(LightningEnvironment(), 2, 1)
    if is_first:
        launcher.started = [subprocess.Popen(["sleep", "600"])]
        (folder / "other").write_text(str(launcher.started[0].pid))
    else:
        os.environ |= {"MMFORMER_STARTED_BY": str(os.getppid() + 1), "LOCAL_RANK": "1"}
    BeforeMeeting(launcher if is_first else None).begin()
    (folder / "waits").touch()
    TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=True)


def end_of(folder: Path, is_first: bool, number: signal.Signals | None = None, other: bool = False) -> tuple[int, str]:
    """The exit code of a process that waits, and what it said, after a signal to it, or to the one that it started."""
    process = several.context().Process(target=waits, args=(folder, is_first))
    process.start()
    assert process.pid is not None
    wait_for(folder / "waits")
    if number is not None:
        os.kill(int((folder / "other").read_text()) if other else process.pid, number)
    process.join(20)
    assert process.exitcode is not None, "it waits on"
    if is_first:
        wait_for_end(int((folder / "other").read_text()))
    return process.exitcode, (folder / "log.txt").read_text()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def test_a_first_process_that_waits_ends_when_it_is_told_to(tmp_path: Path) -> None:
    code, said = end_of(tmp_path, True, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert said == "\nmmformer: told to end (SIGTERM) before the processes of this run had met: all end.\n"


def test_a_first_process_does_not_wait_for_one_that_is_gone(tmp_path: Path) -> None:
    code, said = end_of(tmp_path, True, signal.SIGTERM, other=True)
    assert code == 128 + signal.SIGTERM
    assert said == "\nmmformer: process 1 of this run was killed by SIGTERM before all had met: all others end.\n"


def test_one_that_was_started_does_not_wait_for_a_first_process_that_is_gone(tmp_path: Path) -> None:
    code, said = end_of(tmp_path, False)
    assert code == 1
    assert said == "\nmmformer: process 0 of this run is gone before all had met: all others end.\n"


def test_where_all_have_met_signals_are_what_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    made = BeforeMeeting(Launcher(LightningEnvironment(), 2, 1))
    made.begin()
    assert signal.getsignal(signal.SIGTERM) != before
    made.end()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


# ------------------------------------------------------------------------------------------- a run of two

LATE = """
import os, signal, sys, time
from pathlib import Path
from mmformer.cli.main import main
from mmformer.training import fit
from mmformer.training.processes import MeshStrategy

kind, file = os.environ["KIND"], Path(os.environ["WAITING"])  # the second is started with the first one's words
rank, meet, rehearse = os.environ.get("LOCAL_RANK", "0"), MeshStrategy._meet, fit.rehearse

def tells():
    file.with_name("waits.new").write_text(str(os.getpid()))
    file.with_name("waits.new").rename(file)

def late(self):
    if rank == "1":
        tells()
        if kind == "second":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    meet(self)

def rehearsing(*given):
    if kind == "rehearsal":
        tells()
        os.kill(os.getpid(), signal.SIGTERM)
    rehearse(*given)

MeshStrategy._meet, fit.rehearse = late, rehearsing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("rehearsal", -signal.SIGTERM, None),  # as a run of one process: there are no others yet
        ("first", 128 + signal.SIGTERM, "told to end (SIGTERM) before the processes of this run had met: all end."),
        ("killed", -signal.SIGKILL, "process 0 of this run is gone before all had met: all others end."),
        (
            "second",
            128 + signal.SIGTERM,
            "process 1 of this run was killed by SIGTERM before all had met: all others end.",
        ),
    ],
)
def test_both_end_where_one_is_told_to_before_they_have_met(
    kind: str, code: int, told: str | None, tmp_path: Path
) -> None:
    """The second process comes late; the first one waits for it inside of torch."""
    run = tiny_run(write_shards(tmp_path / "shards"), data={"test": None})
    file, script, waiting = tmp_path / "run.yaml", tmp_path / "late.py", tmp_path / "waits"
    file.write_text(to_yaml(run), encoding="utf-8")
    script.write_text(LATE)
    words = ["fit", "--config", str(file), "--output", str(tmp_path / "run"), "--parallel.shard", "2"]
    process = subprocess.Popen(
        [sys.executable, str(script), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "KIND": kind, "WAITING": str(waiting)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(waiting)
    began = time.monotonic()
    if kind in ("first", "killed"):
        process.send_signal(signal.SIGTERM if kind == "first" else signal.SIGKILL)
    said, _ = process.communicate(timeout=60)  # until the second has closed it, too
    assert time.monotonic() - began < 20
    assert process.returncode == code, said
    assert said.count("mmformer: ") == (told is not None), said
    assert (told or "") in said
    wait_for_end(int(waiting.read_text()))
