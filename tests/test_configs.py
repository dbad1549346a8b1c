"""Every file under configs/: it is read as a run, its model has a size, and it takes a step on made-up samples. Stacks
are read by the commands that their head comments tell. All files together use every part that there is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mmformer.catalogue import catalogue
from mmformer.cli.options import merged, split
from mmformer.config import parse, read_yaml
from mmformer.data.inputs import ImageInputSpec
from mmformer.data.sources import DataSpec, SourceSpec
from mmformer.interop.family import Library
from mmformer.interop.source import families_of
from mmformer.models.head import ClassHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.run import RunSpec
from mmformer.types import Audio, Batch

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "configs/runs").glob("*.yaml"))
STACKS = sorted((ROOT / "configs/stacks").glob("*.yaml"))
SYSTEMS = {family.template for library in get_args(Library) for family in families_of(library)}
"""Named systems: models to import, whose sizes are the published ones."""
UNREAD = {"flamingo.yaml"}
"""Those of which no other library's weights are read."""
NUMBER = 4
TEXTS = ["a red square", "two", "what is it?", "grinning face with big eyes"]


pytestmark = pytest.mark.usefixtures("stand_in_vocabulary")


@cache
def read(path: Path) -> RunSpec:
    return parse(RunSpec, merged(RunSpec, [("config", str(path))]), str(path))


@cache
def read_stack(path: Path) -> StackSpec:
    return parse(StackSpec, read_yaml(path), str(path))


def made_up(run: RunSpec, source: SourceSpec) -> Batch:
    """Random samples of what a source holds."""
    random = torch.Generator().manual_seed(0)
    encoders, labels = run.model.text_encoders(), {}
    for name, objective in run.objectives.items():
        if isinstance(objective, ClassificationSpec) and (objective.label or objective.head) in source.labels:
            head = run.model.heads[objective.head]
            assert isinstance(head, ClassHeadSpec), name
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
    take_a_step(read(path))


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_a_stack_takes_a_step_in_the_run_that_its_file_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"^#   mmformer fit (.*)$", path.read_text(), re.M)
    settings = split(command.split(), RunSpec, {}).settings
    assert settings[1:] == [(settings[1][0], f"configs/stacks/{path.name}")]
    stack = settings[1][0].removeprefix("model.stacks.")
    run = parse(RunSpec, merged(RunSpec, settings), str(path))
    assert stack in read(ROOT / settings[0][1]).model.stacks
    assert run.model.stacks[stack] == read_stack(path), "nothing of the run's own stack is left"
    take_a_step(run)


def take_a_step(run: RunSpec) -> None:
    """Build a run's model without memory, initialise it, and take a gradient of every source."""
    with torch.device("meta"):
        model = run.model.build()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model = run.model.build()
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    for parameter in model.parameters():
        parameter.detach().fill_(float("nan"))
    model.initialise(0)
    data = run.data
    assert isinstance(data, DataSpec)
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    weights = {name: spec.weight for name, spec in run.objectives.items()}
    told: set[str] = set()
    for source in data.each():
        batch = made_up(run, source)
        for objective in objectives.values():
            batch = objective.prepare(batch, 0)
        losses = accumulate(model, objectives, weights, batch, 1, lambda loss: loss.backward())
        assert all(value.isfinite() for value in losses.values())
        told |= {name.partition("/")[0] for name in losses}
    assert told >= set(run.objectives), "every objective has a source"
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, grad in trained.items() if grad is None] == [], "every parameter is reached"
    assert all(grad.isfinite().all() for grad in trained.values() if grad is not None)


def test_every_part_is_in_some_file() -> None:
    used = {type(part).__name__ for path in RUNS for part in parts(read(path).model)}
    used |= {type(part).__name__ for path in STACKS for part in parts(read_stack(path))}
    systems = (ROOT / "configs/models" / name for name in SYSTEMS | UNREAD)
    used |= {type(part).__name__ for path in systems for part in parts(parse(ModelSpec, read_yaml(path), str(path)))}
    assert {entry.name for entry in catalogue()} - used == set()


def parts(value: Any) -> Iterator[Any]:
    """All dataclasses in a value."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from parts(item)


def test_no_two_stacks_are_one() -> None:
    assert len({read_stack(path) for path in STACKS}) == len(STACKS)


@pytest.mark.parametrize("path", [*RUNS, *(ROOT / "configs/models").glob("*.yaml")], ids=lambda path: path.stem)
def test_a_file_says_what_it_is(path: Path) -> None:
    """A head comment: for runs the command, what to expect and the time."""
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert head
    if path in RUNS:
        assert f"mmformer fit --config configs/runs/{path.name}" in head
    elif path.name in SYSTEMS | UNREAD:
        assert ("mmformer import " in head) == (path.name in SYSTEMS)
        told = re.search(r"([\d,.]+) (M|B) parameters", head)
        assert told, "how large it is"
        said = float(told[1].replace(",", "")) * {"M": 1e6, "B": 1e9}[told[2]]
        with torch.device("meta"):
            model = parse(ModelSpec, read_yaml(path), str(path)).build()
        assert sum(value.numel() for value in model.parameters()) == pytest.approx(said, rel=0.01)
    else:
        users = [run for run in RUNS if f"models/{path.name}" in run.read_text()]
        assert users, "a run uses it"
        assert any(f"configs/runs/{run.name}" in head for run in users)
