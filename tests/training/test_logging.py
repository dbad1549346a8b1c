"""What is told of a run besides its losses: norms, times, pictures, and other people's services."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_run, write_shards

from mmformer.errors import InputError
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training import loggers, timing
from mmformer.training.checkpoint import Checkpoint
from mmformer.training.fit import fit
from mmformer.training.metrics import MetricsTable
from mmformer.training.norms import ActivationNorms, gradient_norms
from mmformer.training.run import CheckpointSpec, LoggingSpec
from mmformer.training.samples import Samples
from mmformer.training.stopping import Stopping
from mmformer.training.timing import Stopwatch, Timing
from mmformer.types import Batch

TEXTS = ["red", "blue", "a small blue square", "green"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def rows(output: Path, name: str = "metrics.csv") -> list[dict[str, float]]:
    with (output / name).open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


# ------------------------------------------------------------------------------------------------- norms


def lengths(batch: Batch) -> list[int]:
    assert batch.text is not None
    return batch.text.lengths.tolist()


def test_norms_are_those_by_hand() -> None:
    model = tiny_model(classes=3).build()
    model.initialise(0)
    batch = tiny_batch(TEXTS)
    with ActivationNorms(model) as activations:
        for part in (batch.rows(slice(0, 1)), batch.rows(slice(1, 4))):  # micro-batches
            outputs = model(part)
    one = outputs.embedding["image"].square().sum() + outputs.embedding["text"].square().sum()
    one.backward()
    found = gradient_norms(model)
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = "gradient_norm/" + ".".join(name.split(".")[:2])
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.square().sum())
    assert set(found) == {
        f"gradient_norm/{kind}.{name}" for kind in ("stacks", "encoders") for name in ("image", "text")
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: math.sqrt(value) for name, value in squares.items()}, rel=1e-5
    )
    layers = {"image/0": "stacks.image.layers.0", "image/1": "stacks.image.layers.1", "text/0": "stacks.text.layers.0"}
    seen: dict[str, list[Any]] = {name: [] for name in layers}
    for part in (batch.rows(slice(0, 1)), batch.rows(slice(1, 4))):
        for name, value in model(part, intermediates=tuple(layers)).intermediates.items():
            # How much padding there is depends on who shares the batch.
            text = part.text if name.startswith("text") else None
            rows = [row if text is None else row[:length] for row, length in zip(value, lengths(part), strict=True)]
            seen[name] += [row.flatten() for row in rows]
    expected = {
        f"activation_rms/{layers[name]}": float(torch.cat(x).detach().square().mean().sqrt())
        for name, x in seen.items()
    }
    assert {name: float(value) for name, value in activations.read().items()} == pytest.approx(expected, rel=1e-5)
    assert not any(module._forward_hooks for module in model.modules()), "nothing is left behind"


def test_norms_are_logged_where_they_are_asked_for(shards: Path, tmp_path: Path) -> None:
    run = tiny_run(shards, data={"test": None})
    for name, logging in (("plain", LoggingSpec(tensorboard=False)), ("norms", LoggingSpec(False, norms=True))):
        fit(dataclasses.replace(run, logging=logging), tmp_path / name)
    plain, told = rows(tmp_path / "plain"), rows(tmp_path / "norms")
    for before, after in zip(plain, told, strict=True):
        added = after.keys() - before.keys()
        parts = [after[name] for name in added if name.startswith("train/gradient_norm/")]
        assert len(parts) == 5
        assert math.sqrt(sum(norm**2 for norm in parts)) == pytest.approx(after["train/gradient_norm"], rel=1e-4)
        assert {name for name in added if "gradient_norm" not in name} == {
            f"train/activation_rms/stacks.{layer}" for layer in ("image.layers.0", "image.layers.1", "text.layers.0")
        }
        assert {name: after[name] for name in before} == before, "training is the same"


# ------------------------------------------------------------------------------------------------- times


def test_waiting_and_training_are_timed_apart(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a clock of our own, on which reading a batch takes three seconds and an update one."""
    now = [0.0]
    for name, seconds in (("start", 0.0), ("stop", 1.0)):
        real = getattr(Stopwatch, name)

        def ticking(self: Any, action: str, real: Any = real, seconds: float = seconds) -> None:
            now[0] += seconds * (3 if action.endswith("train_dataloader_next") else action == "run_training_batch")
            real(self, action)

        monkeypatch.setattr(Stopwatch, name, ticking)
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "LEAST", 10.0)
    fit(tiny_run(shards, data={"test": None}), tmp_path / "run")
    table = rows(tmp_path / "run", "timing.csv")
    assert [row["step"] for row in table] == [2, 4, 6]
    assert all(row["timing/data_wait"] == 3 and row["timing/step"] == 1 for row in table)
    said = capsys.readouterr().err
    assert said.count("Reading data is the slow part: of 4 s an update, 3 s (75 %) are spent waiting for it") == 1
    assert "with 0 workers: set data.workers" in said


@pytest.mark.parametrize(("waited", "told"), [(1.9, False), (2.1, True)])
def test_a_fifth_of_the_time_may_be_waited(
    waited: float, told: bool, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopwatch = Stopwatch(Stopping(Checkpoint(CheckpointSpec(), tmp_path)))
    one = Timing(tiny_run(shards, data={"workers": 2}), tmp_path, 0, stopwatch)
    one._updates = 4
    one._tell(waited, 10 - waited)
    assert capsys.readouterr().err == "", "too little was measured"
    one._tell(10 * waited, 100 - 10 * waited)
    assert ("with 2 workers: raise data.workers" in capsys.readouterr().err) == told
    one._tell(10 * waited, 100 - 10 * waited)
    assert capsys.readouterr().err == "", "once"


# ------------------------------------------------------------------------------------------------- pictures


def test_samples_are_the_batch_as_the_model_reads_it(shards: Path) -> None:
    run = tiny_run(shards, logging=LoggingSpec(samples=3))
    batch = tiny_batch(TEXTS)
    cards = Samples(run).cards(batch, run.model.build())
    assert [card.caption for card in cards] == TEXTS[:3]
    assert [card.name for card in cards] == list(batch.keys[:3])
    assert batch.image is not None
    assert all(
        np.array_equal(card.picture, x.permute(1, 2, 0).numpy()) for card, x in zip(cards, batch.image[:3], strict=True)
    )


def test_samples_have_what_a_decoder_writes_of_them(shards: Path) -> None:
    model = tiny_model(caption=True)
    run = tiny_run(shards, model=model, logging=LoggingSpec(samples=3))
    built = model.build()
    built.initialise(1)
    batch = tiny_batch(TEXTS)
    cards = Samples(run).cards(batch, built)
    assert [card.name for card in cards] == TEXTS[:3]
    assert batch.image is not None
    encoded = [built.eval()(Batch(("",), {}, image[None]), decode=False).tokens for image in batch.image[:3]]
    alone = [write_texts(built, "caption", tokens, [""], GreedySpec()) for tokens in encoded]
    assert [card.caption for card in cards] == [text for (text,) in alone]
    assert len({card.caption for card in cards}) > 1
    sharded = dataclasses.replace(run, parallel=ParallelSpec(shard=2))
    assert [card.caption for card in Samples(sharded).cards(batch, built)] == TEXTS[:3], "it cannot write meanwhile"


def test_samples_are_in_tensorboard(shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run(shards, data={"test": None}, logging=LoggingSpec(samples=3))
    fit(dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, every_steps=4)), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("samples")] == [1, 4, 6]
    assert {"timing/step", "timing/data_wait", "train/loss"} <= set(events.Tags()["scalars"])


# ------------------------------------------------------------------------------------------------- W&B


def test_wandb_is_asked_for_by_its_project(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(shards, logging=LoggingSpec(tensorboard=False, wandb="emoji"))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(loggers, "WandbLogger", lambda **options: asked.append(options) or "wandb")
    table, other = loggers.make_loggers(run, tmp_path / "name", 0)
    assert isinstance(table, MetricsTable)
    assert other == "wandb"
    (options,) = asked
    assert (options["project"], options["name"], options["save_dir"]) == ("emoji", "name", str(tmp_path / "name"))
    assert options["config"]["trainer"]["max_steps"] == 6
    assert len(loggers.make_loggers(dataclasses.replace(run, logging=LoggingSpec(False)), tmp_path, 0)) == 1


def test_wandb_that_is_absent_is_told_before_anything_is_written(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"logging\.wandb is 'emoji', but the package wandb is not installed: pip"):
        fit(tiny_run(shards, logging=LoggingSpec(wandb="emoji")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_meant_is_refused(shards: Path) -> None:
    for make, message in (
        (lambda: LoggingSpec(samples=-1), r"LoggingSpec\.samples must be at least 0"),
        (lambda: LoggingSpec(False, samples=2), r"LoggingSpec\.samples must be 0 where logging\.tensorboard is false"),
        (lambda: LoggingSpec(wandb=""), r"LoggingSpec\.wandb must be None or the name of a project"),
    ):
        with pytest.raises(InputError, match=message):
            make()
