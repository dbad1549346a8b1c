"""The launch scripts: what they would start, what they refuse."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = ("--config", "configs/runs/emoji_quickstart.yaml", "--output", "runs/a b")


def call(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [str(ROOT / "launch" / script), *words]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=60)


def test_torchrun_on_one_machine() -> None:
    done = call("torchrun.sh", "--dry-run", *RUN, GPUS="2")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:3] == [".venv/bin/python", "-m", "torch.distributed.run"]
    assert words[-4:] == ["--output", "runs/a b", "--parallel.shard", "2"], "the run's words stay whole"
    assert "--standalone" in words


def test_a_dry_run_may_be_asked_for_anywhere() -> None:
    first = call("torchrun.sh", "--dry-run", *RUN, GPUS="2").stdout
    assert call("torchrun.sh", *RUN, "--dry-run", GPUS="2").stdout == first
    assert call("slurm.sh", *RUN, "--dry-run").stdout == call("slurm.sh", "--dry-run", *RUN).stdout


def test_torchrun_on_several_machines() -> None:
    done = call("torchrun.sh", "--dry-run", *RUN, GPUS="8", NODES="4", NODE_RANK="3", HEAD="node0:29500")
    words = shlex.split(done.stdout)
    for option, value in (("--nnodes", "4"), ("--node-rank", "3"), ("--rdzv-endpoint", "node0:29500")):
        assert words[words.index(option) + 1] == value
    assert words[-1] == "32"


def test_slurm_goes_on_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    words = ("--dry-run", "--config", "run.yaml", "--output", str(tmp_path / "run"))
    first = shlex.split(call("slurm.sh", *words, NODES="2", GPUS="4").stdout)
    assert first[0] == "srun"
    assert first[-1] == "8"
    assert "--resume" not in first
    (tmp_path / "run" / "checkpoints" / "step-000000004.partial").mkdir(parents=True)
    assert "--resume" not in call("slurm.sh", *words).stdout, "one that is not whole is none"
    (tmp_path / "run" / "checkpoints" / "step-000000002").mkdir()
    assert "--resume" in shlex.split(call("slurm.sh", *words).stdout)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (130, True)])
def test_a_job_that_a_signal_stopped_is_put_back(code: int, requeued: bool, tmp_path: Path) -> None:
    """130 is what fit leaves with then, after its checkpoint."""
    for name, line in (("srun", f"echo started; exit {code}"), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = call("slurm.sh", *RUN, PATH=path, SLURM_JOB_ID="77", SLURM_NTASKS="2")
    assert done.returncode == code
    assert done.stdout.splitlines() == ["started"] + ["scontrol requeue 77"] * requeued


@pytest.mark.parametrize(
    ("script", "environment", "words", "message"),
    [
        ("torchrun.sh", {"GPUS": "0"}, RUN, "no GPU was found here: set GPUS"),
        ("torchrun.sh", {"GPUS": "2", "NODES": "2"}, RUN, "NODES is 2: set HEAD"),
        ("slurm.sh", {}, RUN[:2], "--output DIR is required"),
        ("slurm.sh", {}, RUN, "this is for sbatch; --dry-run prints"),
    ],
)
def test_what_is_missing_is_said(
    script: str, environment: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    done = call(script, *words, **environment)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh"])
def test_help_is_the_head_of_the_script(script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script} --dry-run" in done.stdout
