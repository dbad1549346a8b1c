"""Every file under configs/: it is read as a run, its model has a size, and it takes a step on made-up samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmformer.cli.options import merged
from mmformer.config import parse
from mmformer.data.inputs import ImageInputSpec
from mmformer.data.sources import DataSpec, SourceSpec
from mmformer.models.head import ClassificationHeadSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.run import RunSpec
from mmformer.types import Audio, Batch

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "configs/runs").glob("*.yaml"))
NUMBER = 4
TEXTS = ["a red square", "two", "what is it?", "grinning face with big eyes"]


def read(path: Path) -> RunSpec:
    return parse(RunSpec, merged(RunSpec, [("config", str(path))]), str(path))


def made_up(run: RunSpec, source: SourceSpec) -> Batch:
    """Random samples of what a source holds."""
    random = torch.Generator().manual_seed(0)
    encoders, labels = run.model.text_encoders(), {}
    for name, objective in run.objectives.items():
        if isinstance(objective, ClassificationSpec) and (objective.label or objective.head) in source.labels:
            head = run.model.heads[objective.head]
            assert isinstance(head, ClassificationHeadSpec), name
            labels[objective.label or objective.head] = torch.arange(NUMBER) % head.classes
    image, audio = None, None
    if source.image is not None:
        assert isinstance(source.image, ImageInputSpec)
        height, width = source.image.transform.size
        image = torch.randint(0, 256, (NUMBER, 3, height, width), generator=random, dtype=torch.uint8)
    if source.audio is not None:
        rate = source.audio.transform.rate
        lengths = torch.tensor([rate, rate // 2, rate // 3, rate // 4])
        audio = Audio(torch.randn(NUMBER, rate, generator=random) / 10, lengths, rate)
    text = None if source.text is None else encoders["text"].encode(TEXTS)
    target = None if source.target is None else encoders["target"].encode(TEXTS)
    keys = tuple(map(str, range(NUMBER)))
    return Batch(keys, labels, image, text, audio, target, torch.arange(NUMBER))


def test_there_are_runs() -> None:
    assert len(RUNS) >= 5


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_takes_a_step_of_every_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = read(path)
    with torch.device("meta"):
        meta = run.model.build()
    model = run.model.build()
    model.initialise(0)
    assert {name: p.shape for name, p in meta.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    data = run.data
    assert isinstance(data, DataSpec)
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    weights = {name: spec.weight for name, spec in run.objectives.items()}
    told: set[str] = set()
    for source in data.each():
        batch = made_up(run, source)
        losses = accumulate(model, objectives, weights, batch, 1, lambda loss: loss.backward())
        assert all(value.isfinite() for value in losses.values())
        told |= {name.partition("/")[0] for name in losses}
    assert told >= set(run.objectives), "every objective has a source"
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "every parameter is reached"


@pytest.mark.parametrize("path", [*RUNS, *(ROOT / "configs/models").glob("*.yaml")], ids=lambda path: path.stem)
def test_a_file_says_what_it_is(path: Path) -> None:
    """A head comment: for runs the command, what to expect and the time."""
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert head
    if path in RUNS:
        assert f"mmformer fit --config configs/runs/{path.name}" in head
    else:
        users = [run for run in RUNS if f"models/{path.name}" in run.read_text()]
        assert users, "a run uses it"
        assert any(f"configs/runs/{run.name}" in head for run in users)
