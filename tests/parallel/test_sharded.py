"""``--parallel.shard 2`` through the real command line: what it trains is what one process trains."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import COLOURS, VOCABULARY, labels, tiny_model, tiny_run, write_shards

import mmformer
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.head import ContrastiveHeadSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec
from mmformer.parallel.sharding import ParallelSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.average import EMASpec
from mmformer.training.processes import trainer_arguments
from mmformer.training.run import RunSpec

ROOT = Path(__file__).parents[2]


def everything(shards: Path) -> RunSpec:
    """Softmax and sigmoid contrast, a classification head, a decoder, averaged weights, clipping, evaluation."""
    model = tiny_model(classes=len(COLOURS))
    layer = dataclasses.replace(model.stacks["text"].layer, cross=AttentionSpec(2))
    words = TextTokensSpec(VOCABULARY, context_length=16)
    model = dataclasses.replace(
        model,
        stacks={**model.stacks, "writer": StackSpec(16, 1, layer)},
        decoders={"caption": DecoderSpec(words, "writer", {"image": "cross"})},
        heads={**model.heads, "sigmoid": ContrastiveHeadSpec(0.1, None, -10.0)},
    )
    run = tiny_run(shards, data={"labels": labels(shards)}, model=model, ema=EMASpec(0.9))
    return dataclasses.replace(
        run,
        objectives={
            "contrastive": ContrastiveSpec(),
            "sigmoid": SigmoidContrastiveSpec(0.3, head="sigmoid"),
            "caption": CaptioningSpec(0.5),
            "colour": ClassificationSpec(head="colour"),
        },
        trainer=dataclasses.replace(run.trainer, gradient_clip_val=0.5, log_every_n_steps=1),
        evaluation=dataclasses.replace(run.evaluation, every_steps=3),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    path = folder / "run.yaml"
    path.write_text(to_yaml(everything(write_shards(folder / "shards"))), encoding="utf-8")
    return path


def start(file: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmformer", "fit", "--config", str(file), "--output", str(output), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def fit(file: Path, output: Path, *words: str) -> str:
    process = start(file, output, *words)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    return said


def rows(output: Path) -> list[dict[str, float]]:
    with (output / "metrics.csv").open(encoding="utf-8") as table:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(table)]


def assert_alike(one: Path, other: Path) -> None:
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-4 if a["step"] > 1 else 2e-6, abs=1e-6), (a["step"], name)
    first, second = (load_file(output / "bundle" / "model.safetensors") for output in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(second[name], value, atol=2e-4), name
    assert {p.name for p in (one / "bundle").iterdir()} == {p.name for p in (other / "bundle").iterdir()}


def test_two_processes_train_what_one_trains(file: Path, tmp_path: Path) -> None:
    fit(file, tmp_path / "one")
    said = fit(file, tmp_path / "two", "--parallel.shard", "2")
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert len(rows(tmp_path / "two")) == 6
    assert said.count("Try next") == 1, "one of them speaks"
    assert "Initializing" not in said
    state = tmp_path / "two" / "checkpoints" / "step-000000006" / "state.ckpt"
    assert {path.name for path in state.iterdir()} >= {"__0_0.distcp", "__1_0.distcp"}, "each process wrote its part"
    model = mmformer.load(tmp_path / "two" / "bundle")
    assert len(model.caption(image=[torch.zeros(3, 16, 16, dtype=torch.uint8)])) == 1


@pytest.mark.slow
def test_micro_batches_are_the_whole_too(file: Path, tmp_path: Path) -> None:
    words = ("--trainer.accumulate_grad_batches", "2")
    fit(file, tmp_path / "one")
    fit(file, tmp_path / "two", "--parallel.shard", "2", *words)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(file: Path, tmp_path: Path) -> None:
    words = ("--parallel.shard", "2", "--trainer.max_steps", "12")
    fit(file, tmp_path / "whole", *words)
    process = start(file, tmp_path / "killed", *words)
    kept = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(kept.glob("step-*4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert list(kept.glob("step-*[0-9]")), "it was killed before its first checkpoint"
    shutil.rmtree(tmp_path / "killed" / "bundle", ignore_errors=True)
    fit(file, tmp_path / "killed", *words, "--resume")
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "killed"), strict=True):
        assert a == b
    first, second = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first), "to the bit"


def test_what_does_not_divide_is_refused(file: Path) -> None:
    run = everything(file.parent / "shards")
    with pytest.raises(InputError, match=r"accumulate_grad_batches = 3 × 1 = 3 does not divide"):
        dataclasses.replace(run, parallel=ParallelSpec(3))
    with pytest.raises(InputError, match=r"data.order.lanes is 2, which parallel.shard, 4, does not divide"):
        dataclasses.replace(run, parallel=ParallelSpec(4))
    with pytest.raises(InputError, match=r"ParallelSpec.shard must be at least 1"):
        ParallelSpec(0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            r"8 processes were started \(4 on each of 2 machines\), but parallel.shard is 2",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"},
            r"4 processes were started \(4 on each of 1 machines\), but parallel.shard is 2",
        ),
    ],
)
def test_other_processes_than_were_started_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        trainer_arguments(ParallelSpec(2))


def test_processes_are_counted_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_arguments(ParallelSpec(1)) == {"devices": 1}
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    arguments: dict[str, Any] = trainer_arguments(ParallelSpec(8))
    assert (arguments["devices"], arguments["num_nodes"]) == (4, 2)
