"""Two processes through the real command line, which share out each dimension: they train what one process trains."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import assert_alike, everything, fit, rows, start
from safetensors.torch import load_file
from tiny import write_shards

import mmformer
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training.processes import trainer_arguments

HEADS_ALONE = ("--freeze", "[encoders.*, stacks.*, decoders.*, heads.colour.*]")
"""With the contrastive objectives: a scale and a bias are all that trains."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    path = folder / "run.yaml"
    path.write_text(to_yaml(everything(write_shards(folder / "shards"))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one(file: Path) -> Path:
    """The run in one process."""
    fit(file, file.parent / "one")
    return file.parent / "one"


def test_two_processes_train_what_one_trains(file: Path, one: Path, tmp_path: Path) -> None:
    """As a user starts them: each an interpreter of its own, whose sets have an order of their own."""
    process = start(file, tmp_path / "two", "--parallel.shard", "2")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert_alike(one, tmp_path / "two")
    assert len(rows(tmp_path / "two")) == 6
    assert said.count("Try next") == 1, "one of them speaks"
    assert "Initializing" not in said
    state = tmp_path / "two" / "checkpoints" / "step-000000006" / "state.ckpt"
    assert {path.name for path in state.iterdir()} >= {"__0_0.distcp", "__1_0.distcp"}, "each process wrote its part"
    model = mmformer.load(tmp_path / "two" / "bundle")
    assert len(model.caption(image=[torch.zeros(3, 16, 16, dtype=torch.uint8)])) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimension", "parts"),
    [
        ("data", 2),
        ("tensor", 1),
        pytest.param("data", 1, marks=pytest.mark.slow),
        pytest.param("shard", 2, marks=pytest.mark.slow),
    ],
)
def test_replicas_peers_and_micro_batches_do_too(
    dimension: str, parts: int, file: Path, one: Path, tmp_path: Path
) -> None:
    fit(file, tmp_path / "two", f"--parallel.{dimension}", "2", "--trainer.accumulate_grad_batches", str(parts))
    assert_alike(one, tmp_path / "two")


@pytest.mark.slow
def test_a_scale_alone_trains_as_in_one_process(file: Path, tmp_path: Path) -> None:
    """Of micro-batches, the last has to carry what is no sample's: gradients are sent with that one."""
    run = everything(file.parent / "shards")
    contrasts = {name: run.objectives[name] for name in ("contrastive", "sigmoid")}
    words = tmp_path / "run.yaml"
    words.write_text(to_yaml(dataclasses.replace(run, objectives=contrasts)), encoding="utf-8")
    fit(words, tmp_path / "one", *HEADS_ALONE)
    fit(words, tmp_path / "two", *HEADS_ALONE, "--parallel.shard", "2", "--trainer.accumulate_grad_batches", "2")
    assert_alike(tmp_path / "one", tmp_path / "two")
    scales = [row["train/contrastive_scale"] for row in rows(tmp_path / "two")]
    assert scales[-1] != scales[0], "it moves"


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(file: Path, tmp_path: Path) -> None:
    """Where some parameters have no state of the optimizer yet."""
    words = ("--parallel.shard", "2", "--trainer.max_steps", "12", "--thaw", "{'stacks.text.*': 9}")
    fit(file, tmp_path / "whole", *words)
    process = start(file, tmp_path / "killed", *words)
    kept = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(kept.glob("step-*4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    assert not list(kept.glob("step-*12")), "it had ended before it was killed"
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert list(kept.glob("step-*[0-9]")), "it was killed before its first checkpoint"
    assert not (tmp_path / "killed" / "bundle").exists()
    fit(file, tmp_path / "killed", *words, "--resume")
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "killed"), strict=True):
        assert a == b
    first, second = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first), "to the bit"


def test_what_does_not_divide_is_refused(file: Path) -> None:
    run = everything(file.parent / "shards")
    with pytest.raises(InputError, match=r"batches × .*parallel.data × parallel.shard.*, 1 × 1 × 3.*, does not divide"):
        dataclasses.replace(run, parallel=ParallelSpec(shard=3))
    with pytest.raises(
        InputError, match=r"data.order.lanes is 2, which parallel.data × parallel.shard.*, 2 × 2.*, does"
    ):
        dataclasses.replace(run, parallel=ParallelSpec(data=2, shard=2))
    assert dataclasses.replace(run, parallel=ParallelSpec(shard=2, tensor=2)).parallel.readers == 2, "peers read alike"
    with pytest.raises(InputError, match=r"ParallelSpec.shard must be at least 1"):
        ParallelSpec(shard=0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            r"8 processes were started \(4 on each of 2 machines\), but the run is spread over "
            rf"{re.escape(ParallelSpec(shard=2).arithmetic)}: start 2, or give these dimensions the product 8 "
            r"\(--parallel.shard 8\).",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"},
            r"4 processes were started \(4 on each of 1 machines\), but .* = 2: start 2",
        ),
    ],
)
def test_other_processes_than_were_started_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        trainer_arguments(ParallelSpec(shard=2))


def test_processes_are_counted_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_arguments(ParallelSpec()) == {"devices": 1}
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    arguments: dict[str, Any] = trainer_arguments(ParallelSpec(shard=8))
    assert (arguments["devices"], arguments["num_nodes"]) == (4, 2)
