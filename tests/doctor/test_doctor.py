"""``mmformer doctor``: what is well is said to be, and each thing that is broken is found."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tiny import tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import to_yaml
from mmformer.doctor import disk, group, machine, shards
from mmformer.doctor.finding import Finding, summary, table

Usage = namedtuple("Usage", "total used free")


def test_this_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes start, find each other and add up; all of a run's splits are there."""
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(tiny_run(write_shards(tmp_path / "shards"))), encoding="utf-8")
    code = main(["doctor", "--config", str(run), "--output", str(tmp_path / "new" / "run"), "--json"])
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert code == 0, found
    assert {"python", "packages", "shared memory", "open files", "clock", "output folder", "room"} <= set(found)
    assert found["all-reduce"]["found"].startswith("2 processes over gloo: 64 MiB in ")
    assert found["machines alike"]["state"] == found["clocks"]["state"] == "ok"
    assert found["data: train"]["found"].split(" in ")[0].endswith("samples")
    assert not (tmp_path / "new").exists(), "nothing is left behind"


def test_what_is_broken_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path / "shards")
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(tiny_run(folder)), encoding="utf-8")
    next(folder.glob("*train*.tar")).unlink()
    assert main(["doctor", "--config", str(run), "--output", str(tmp_path), "--processes", "1"]) == 2
    said = capsys.readouterr().out
    assert "fault   data: train" in said
    assert "→" in said
    assert "1 fault" in said.splitlines()[-1]
    assert "all-reduce" not in said, "one process has nobody to find"


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = disk.writes(tmp_path / "file" / "run")
    assert (found.state, "is a file" in found.found) == ("fault", True)


def test_a_disk_that_lies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"other")
    (found,) = disk.writes(tmp_path)
    assert found.state == "fault"
    assert "what was read is not what was written" in found.found
    assert not list(tmp_path.iterdir())


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**30, 2**30))
    assert disk.writes(tmp_path)[1][1:3] == ("warning", "1 GiB free")


@pytest.mark.parametrize(
    ("free", "workers", "state"), [(2**34, 8, "ok"), (2**29, 8, "warning"), (2**26, 0, "fault"), (2**28, 0, "ok")]
)
def test_shared_memory_has_to_do_for_the_workers(
    free: int, workers: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**36, 0, free))
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    assert machine.shared_memory(workers).state == state


def test_another_torch_than_asked_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "2.13.0" if name == "torch" else real(name))
    packages = next(finding for finding in machine.versions() if finding.check == "packages")
    assert packages.state == "fault"
    assert "torch is 2.13.0, not <2.12,>=2.11" in packages.found


def test_what_does_not_import_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    broken = machine.versions()[-1]
    assert broken.check == "imports"
    assert "torchvision does not import" in broken.found


def test_a_device_that_computes_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        made = product(a, b)
        return made * 1.1 if made.dtype == torch.bfloat16 else made

    assert machine._computes("cpu").state == "ok"
    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    assert machine._computes("cpu").state == "fault"


def test_a_clock_that_jumps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock().state == "ok"
    times = iter([time.time(), time.time() + 60, time.time(), time.time()])
    monkeypatch.setattr(machine.time, "time", lambda: next(times))
    assert "it jumped by +59." in machine.clock().found


def test_a_clock_from_before_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "time", lambda: 1e9)
    assert "before PyTorch was installed" in machine.clock().found


def test_slow_samples_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_run(write_shards(tmp_path)).data
    assert {finding.state for finding in shards.reachable(data)} == {"ok"}
    monkeypatch.setattr(shards, "_SLOW", 0.0)
    assert {finding.state for finding in shards.reachable(data)} == {"warning"}


def test_processes_that_do_not_meet_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies as it starts: the others would wait for it."""
    monkeypatch.setattr(group, "_WAIT", 4)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-network")
    (found,) = group.alone(2)
    assert (found.check, found.state) == ("all-reduce", "fault")
    assert "2 processes do not find each other: " in found.found
    assert "GLOO_SOCKET_IFNAME" in found.fix


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, group.Place(3, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "MASTER_ADDR": "a"}, None),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "a"}, group.Place(5, 8, 1)),
    ],
)
def test_where_it_was_started(environment: dict[str, str], place: group.Place | None) -> None:
    assert group.place(environment) == place


@pytest.mark.slow
def test_a_job_s_processes_speak_once(tmp_path: Path) -> None:
    """Under torchrun: each machine looks at itself once, all are compared, and the first process speaks."""
    where = ["--standalone", "--nproc-per-node", "2", "--module", "mmformer"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "doctor", "--output", str(tmp_path), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    checks = [finding["check"] for finding in json.loads(done.stdout)]
    assert sum(check.endswith(": python") for check in checks) == 1
    assert checks[-4:] == ["all-reduce", "clocks", "machines alike", "output everywhere"]
    assert not list(tmp_path.iterdir())


def test_a_process_of_a_job_that_does_not_come_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(group, "_WAIT", 1)
    assert main(["doctor", "--output", str(tmp_path), "--json"]) == 2
    *own, last = json.loads(capsys.readouterr().out)
    assert {": python" in finding["check"] for finding in own} == {True, False}
    assert (last["check"], last["state"]) == ("all-reduce", "fault")
    assert last["found"].startswith("2 processes do not find each other: Timed out after")


def test_the_table_has_every_fix_below_its_finding() -> None:
    found = [Finding("a", "ok", "well"), Finding("longer", "warning", "slow", "Do this."), Finding("c", "fault", "no")]
    assert table(found).splitlines() == [
        "ok      a       well",
        "warning longer  slow",
        "                → Do this.",
        "fault   c       no",
    ]
    assert summary(found) == "1 of 3 checks are well, 1 warning, 1 fault."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nothing.yaml"], "nothing.yaml"),
        (["--processes", "0"], "--processes"),
        (["--outputs", "x"], "Did you mean '--output'"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err
