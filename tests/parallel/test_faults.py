"""What goes wrong in one of several processes: all agree on what becomes of the run, and say so once."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launched import ROOT, fit, rows, start
from tiny import tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.training.checkpoint import newest_checkpoint, whole_checkpoints
from mmformer.training.divergence import DivergenceSpec
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.sealing import SEAL, content_of, seal

SCRIPT = Path(__file__).with_name("faulty.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def small(shards: Path, steps: int = 6, every: int | None = 2, **changes: Any) -> RunSpec:
    run = tiny_run(shards, steps=steps, data={"test": None}, **changes)
    return dataclasses.replace(
        run,
        trainer=dataclasses.replace(run.trainer, log_every_n_steps=1),
        checkpoint=CheckpointSpec(every, keep=9),
    )


def faulty(run: RunSpec, folder: Path, fault: str, *words: str) -> tuple[int, str, float]:
    """A run of two processes in which something goes wrong; its exit code, what it said, the seconds after it."""
    file = folder / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "fit", "--config", str(file), "--output", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault, "PYTHONPATH": str(ROOT)}
    environment["FAULT_FILE"] = str(folder / "fault")
    done = subprocess.run(
        [*command, "--parallel.shard", "2", *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    began = folder / "fault"
    return done.returncode, done.stdout, time.time() - began.stat().st_mtime if began.exists() else 0.0


@pytest.mark.slow
def test_a_gradient_that_is_no_number_in_one_process_is_refused_by_all(shards: Path, tmp_path: Path) -> None:
    """And the samples of both are named."""
    run = small(shards, divergence=DivergenceSpec("skip"))
    code, said, _ = faulty(run, tmp_path, "nan:1:3")
    assert code == 0, said
    assert said.count("Training diverged: at update 3") == 1
    with (tmp_path / "run" / "refused.tsv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert len(json.loads(row["keys"])) == run.data.batch_size
    assert [row["train/gradient_norm"] for row in rows(tmp_path / "run")][3] > 0
    assert len(whole_checkpoints(tmp_path / "run")) == 3


@pytest.mark.slow
def test_all_processes_roll_back_together(shards: Path, tmp_path: Path) -> None:
    run = small(shards, divergence=DivergenceSpec("roll_back"))
    code, said, _ = faulty(run, tmp_path, "nan:1:4")
    assert code == 0, said
    assert said.count("the run went back to the weights after update 2") == 1
    losses = {row["step"]: row["train/loss"] for row in rows(tmp_path / "run")}
    assert all(0 < losses[step] < 10 for step in (5, 6))


@pytest.mark.slow
def test_a_run_of_several_stops_where_one_diverges(shards: Path, tmp_path: Path) -> None:
    code, said, _ = faulty(small(shards), tmp_path, "nan:1:3")
    assert code == 2, said
    assert said.count("mmformer: ") == 1, said
    assert "Training diverged: at update 3" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["usr1", "term"])
def test_a_signal_to_the_second_process_alone_stops_all(kind: str, shards: Path, tmp_path: Path) -> None:
    run = small(shards, steps=100_000, every=None)
    code, said, _ = faulty(run, tmp_path, f"{kind}:1:3")
    assert code == 130, said
    (state,) = whole_checkpoints(tmp_path / "run")
    assert state.parent.name == "step-000000004"
    assert newest_checkpoint(tmp_path / "run").newest == state, "sealed, with every process's part"
    assert said.count("Interrupted. ") == 1


@pytest.mark.slow
def test_of_a_sharded_checkpoint_every_file_is_looked_at(shards: Path, tmp_path: Path) -> None:
    run = small(shards, steps=4)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "run", "--parallel.shard", "2")
    first, last = whole_checkpoints(tmp_path / "run")
    files = sorted(path.name for path in last.iterdir())
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"} == set(files)
    for name in files:
        data = (last / name).read_bytes()
        (last / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        found = newest_checkpoint(tmp_path / "run")
        assert (found.newest, list(found.damaged)) == (first, [last]), name
        (last / name).write_bytes(data)
    (last / "__1_0.distcp").write_bytes(b"")
    said = fit(file, tmp_path / "run", "--parallel.shard", "2", "--resume")
    assert said.count("step-000000004 is damaged: state.ckpt/__1_0.distcp has 0 bytes") == 1
    assert newest_checkpoint(tmp_path / "run").newest == last


class Evil:
    """What makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.slow
def test_a_sharded_checkpoint_that_would_run_code_is_refused_by_all(shards: Path, tmp_path: Path) -> None:
    """Its table of contents is another, and the seal says that it has to be so."""
    run = small(shards, steps=2)
    file, canary = tmp_path / "run.yaml", tmp_path / "canary"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "run", "--parallel.shard", "2")
    (state,) = whole_checkpoints(tmp_path / "run")
    table = pickle.loads((state / ".metadata").read_bytes())
    table.planner_data = Evil(canary)
    (state / ".metadata").write_bytes(pickle.dumps(table))
    (state.parent / SEAL).unlink()
    seal(state.parent, {f"{state.name}/{path.name}": content_of(path) for path in state.iterdir()})
    for processes in ("2", "1"):
        words = ("--parallel.shard", processes, "--trainer.max_steps", "4", "--resume")
        process = start(file, tmp_path / "run", *words)
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 2, said
        assert said.count("mmformer: ") == 1, said
        assert "Code in such files is never run" in said
    assert not canary.exists()
    pickle.loads((state / ".metadata").read_bytes())
    assert canary.exists(), "trusted, it would have run"


# ------------------------------------------------------------------------------------------------- lost processes


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_named_and_the_others_end(lost: int, shards: Path, tmp_path: Path) -> None:
    code, said, seconds = faulty(small(shards, steps=100_000, every=100), tmp_path, f"kill:{lost}:4")
    assert code != 0
    assert f"process {lost} of this run {'was killed by SIGKILL' if lost else 'is gone'}" in said, said
    assert "defect" not in said
    assert 0 < seconds < 30


@pytest.mark.slow
def test_a_first_process_that_falls_silent_is_named(shards: Path, tmp_path: Path) -> None:
    """It keeps what all share, and nobody closes its connections. What waits for it ends it after 40 s."""
    _, said, _ = faulty(small(shards, steps=100_000, every=None), tmp_path, "stop:0:4")
    assert said.count("mmformer: ") == 1, said
    assert "process 0 of this run gave no sign of life for 14 s" in said


@pytest.mark.slow
def test_what_stops_one_before_training_begins_is_told_to_the_others(shards: Path, tmp_path: Path) -> None:
    """The first process opens its log, while the other waits for it."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(small(shards, steps=2)), encoding="utf-8")
    fit(file, tmp_path / "run", "--parallel.shard", "2")
    (tmp_path / "run" / "tensorboard").touch()
    words = ("--parallel.shard", "2", "--trainer.max_steps", "4", "--logging.tensorboard", "true", "--resume")
    process = start(file, tmp_path / "run", *words)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.count("mmformer: ") == 1, said
    assert "tensorboard: File exists" in said


@pytest.mark.slow
def test_a_process_that_hangs_says_where_and_the_others_end(shards: Path, tmp_path: Path) -> None:
    code, said, seconds = faulty(small(shards, steps=100_000, every=None), tmp_path, "hang:1:4", "--watchdog", "5")
    assert code != 0
    assert 0 < seconds < 40, "5 of them before it is found"
    assert "Timeout (0:00:05)!" in said
    assert "faulty.py" in said, "where it stood"


@pytest.mark.slow
def test_of_a_disk_that_is_full_all_processes_say_the_same(shards: Path, tmp_path: Path) -> None:
    """Whichever of them notices first; nothing is left, and the exit code is that of what a user can mend."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        code, said, _ = faulty(small(shards), tmp_path, "none:1:1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2, said
    assert said.count("mmformer: ") == 1, said
    assert "File too large" in said
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
