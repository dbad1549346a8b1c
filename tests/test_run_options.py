"""Run files and the options that override them, as ``mmformer fit`` reads them; and every file under configs/."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import ROOT, VOCABULARY, tiny_run, write_shards

from mmformer.bundle import Transforms, save_bundle
from mmformer.cli.main import main
from mmformer.config import parse, read_yaml, to_data, to_yaml
from mmformer.models.model import ModelSpec
from mmformer.training.fit import fit
from mmformer.training.run import RunSpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def file(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(tiny_run(shards)))
    return path


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["fit", *words, "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


OVERRIDES: list[tuple[list[str], str, object]] = [
    (["--model.stacks.image.depth", "9"], "model.stacks.image.depth", 9),
    (["--model.stacks.image.layer.mixer.heads=4"], "model.stacks.image.layer.mixer.init_args.heads", 4),
    (
        ["--model.encoders.text.tokenizer.context_length", "8"],
        "model.encoders.text.tokenizer.init_args.context_length",
        8,
    ),
    (["--optimizer.lr", "0.5"], "optimizer.init_args.lr", 0.5),
    (["--optimizer.init_args.lr", "0.5"], "optimizer.init_args.lr", 0.5),
    (["--objectives.contrastive.weight", "2"], "objectives.contrastive.init_args.weight", 2.0),
    (["--schedule", "ConstantScheduleSpec"], "schedule.class_path", "ConstantScheduleSpec"),
    (["--data.image.augment", "[]"], "data.image.augment", []),
    (["--evaluation.metrics.retrieval.recall", "[5]"], "evaluation.metrics.retrieval.init_args.recall", [5]),
    (["--trainer.gradient_clip_val", "null"], "trainer.gradient_clip_val", None),
    (["--ema.decay", "0.9"], "ema", {"decay": 0.9, "warmup": True}),
    (["--ema.decay", "0.9", "--ema", "null"], "ema", None),
    (
        ["--parallel.activation_checkpointing.every", "2"],
        "parallel.activation_checkpointing",
        {"every": 2, "keep": "nothing"},
    ),
    (["--freeze", "[encoders.image.*, '*.bias']"], "freeze", ["encoders.image.*", "*.bias"]),
    (["--thaw", "{'stacks.*': 3}"], "thaw", {"stacks.*": 3}),
    (["--optimizer", "MuonSpec", "--optimizer.momentum", "0.9"], "optimizer.init_args.momentum", 0.9),
    (["--optimizer.layer_decay", "0.8"], "optimizer.init_args.layer_decay", 0.8),
    (
        ["--optimizer.groups", "[{parameters: heads.*, lr_scale: 2}]"],
        "optimizer.init_args.groups",
        [{"parameters": "heads.*", "lr_scale": 2.0, "weight_decay": None}],
    ),
    (["--logging.wandb", "mine"], "logging.wandb", "mine"),
    (
        ["--initial.path", "a/bundle"],
        "initial",
        {"path": "a/bundle", "parameters": ["*"], "resize": False, "partial": False},
    ),
    (["--seed", "7", "--trainer.max_steps", "3"], "trainer.max_steps", 3),
]


@pytest.mark.parametrize(("words", "path", "value"), OVERRIDES, ids=lambda value: str(value)[:40])
def test_an_option_overrides_the_file(
    words: list[str], path: str, value: object, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Any = printed(["--config", str(file), *words], capsys)
    for key in path.split("."):
        found = found[key]
    assert found == value


def test_print_config_is_the_file_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["--config", str(file)], capsys) == yaml.safe_load(file.read_text())


def test_a_later_file_overrides_an_earlier_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.with_name("other.yaml")
    other.write_text("trainer: {max_steps: 77}\n")
    data = printed(["--config", str(file), "--config", str(other)], capsys)
    assert data["trainer"]["max_steps"] == 77
    assert data["trainer"]["log_every_n_steps"] == 2


def test_a_model_may_be_a_file_of_its_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = yaml.safe_load(file.read_text())
    file.with_name("model.yaml").write_text(yaml.safe_dump(whole["model"]))
    file.write_text(yaml.safe_dump({**whole, "model": str(file.with_name("model.yaml"))}))
    assert printed(["--config", str(file)], capsys) == whole
    deeper = printed(["--config", str(file), "--model.stacks.image.depth", "5"], capsys)
    assert deeper["model"]["stacks"]["image"] == {**whole["model"]["stacks"]["image"], "depth": 5}
    assert deeper["model"]["encoders"] == whole["model"]["encoders"]


WRONG: list[tuple[str, list[str]]] = [
    ('--optimizer {"lr":1.0e-3,"momentum":0.9}', ["unknown key 'optimizer.momentum'", "Known here: "]),
    ("--trainr.max_steps 5", ["trainr.max_steps'", "Did you mean 'trainer'?"]),
    ("--trainer.max_step 5", ["trainer.max_step'", "Did you mean 'max_steps'?"]),
    ("--model.stack.image.depth 9", ["model.stack.image.depth'", "Did you mean 'stacks'?"]),
    ("--model.stacks.image.dpth 9", ["dpth'", "Did you mean 'depth'?"]),
    ("--optimizer.lrr 1", ["lrr'", "Did you mean 'lr'?"]),
    ("--objectives.contrastive.wieght 2", ["wieght'", "Did you mean 'weight'?"]),
    ("--optimizer AdamSpec", ["optimizer", "'AdamSpec'", "Did you mean 'AdamWSpec'?"]),
    ("--resum", ["resum'"]),
    ("extra", ["extra'"]),
    ("--trainer.max_steps five", ["trainer.max_steps", "int", "five"]),
    ("--trainer.precision fp8", ["trainer.precision", "32-true", "fp8"]),
    ("--trainer.max_steps 0", ["TrainerSpec.max_steps must be at least 1, but is 0"]),
    ("--data.workers -1", ["DataSpec.workers must be at least 0, but is -1"]),
    ("--config nowhere.yaml", ["nowhere.yaml cannot be read: No such file"]),
    ("--config emoji_quikstart", ["Did you mean 'configs/runs/emoji_quickstart.yaml'?"]),
    ("--config configs/emoji_quickstart.yaml", ["Did you mean 'configs/runs/emoji_quickstart.yaml'?"]),
    ("--evaluation.every_steps 2 --data.validation null", ["data.validation names no split"]),
    ("--checkpoint.best x", ["checkpoint.best needs scores"]),
    (
        "--trainer.accumulate_grad_batches 3",
        ["batch_size is 8", "3 × 1 × 1 × 1, does not divide"],
    ),
    ("--objectives.contrastive.head colour", ["head 'colour'", "contrastive"]),
    ("--objectives.contrastive.pairs [[image,txt]]", ["'txt'", "Did you mean 'text'?"]),
    ("--model.encoders.text.embedding 7", ["12", "7", "same embedding"]),
    ("--ema.decay 1", ["EMASpec.decay must be above 0 and below 1, but is 1.0"]),
    ("--thaw {'stacks.*':9}", ["thaw is 9 for 'stacks.*'", "below trainer.max_steps (6)"]),
    ("--optimizer.groups [{parameters:heads.*}]", ["optimizer.groups"]),
    ("--optimizer ScheduleFreeAdamWSpec", ["made for a rate that does not fall"]),
    ("--early_stopping.patience 2", ["early_stopping", "score"]),
    ("--checkpoint.keep_best 2", ["checkpoint.keep_best is of what checkpoint.best names"]),
    ("--logging.sampels 2", ["sampels'", "Did you mean 'samples'?"]),
    ("--ema.dcay 0.9", ["ema.dcay'", "Did you mean 'decay'?"]),
    ("--freeze encoders.image", ["freeze", "list"]),
    ("--initial.parameters []", ["initial", "path"]),
    ("--data.image.transform.size [0,1]", ["ImageTransformSpec.size must be at least 1 pixel", "(0, 1)"]),
    ("--data.text null", ["The model reads text, but data.text is absent"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG)
def test_a_wrong_option_is_one_clear_line(
    words: str, parts: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(file), *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mmformer: ")
    assert captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err


FILES: list[tuple[str, object, list[str]]] = [
    ("trainr", {}, ["unknown key 'trainr'", "Did you mean 'trainer'?"]),
    ("trainer.max_step", 5, ["unknown key 'trainer.max_step'", "Did you mean 'max_steps'?"]),
    ("trainer", None, ["trainer must be a mapping, but is None"]),
    ("data.image.transform.siz", [1, 1], ["unknown key 'data.image.transform.siz'", "Did you mean 'size'?"]),
    ("optimizer.class_path", "AdamSpec", ["optimizer", "'AdamSpec'", "Did you mean 'AdamWSpec'?"]),
    ("optimizer.dict_kwargs", {"x": 1}, ["unknown key 'optimizer.dict_kwargs'"]),
    ("data.image.augment", ["HorizontalFlip"], ["data.image.augment.0", "Did you mean 'HorizontalFlipSpec'?"]),
    ("data.labels", {"colour": 3}, ["data.labels.colour must be a mapping, but is 3"]),
    ("resume", True, ["unknown key 'resume'"]),
]


@pytest.mark.parametrize(("path", "value", "parts"), FILES)
def test_a_wrong_file_is_one_clear_line(
    path: str, value: object, parts: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place = yaml.safe_load(file.read_text())
    *above, last = path.split(".")
    for key in above:
        place = place[key]
    place[last] = value
    file.write_text(yaml.safe_dump(data))
    assert main(["fit", "--config", str(file), "--print_config"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"mmformer: {file}: ")
    assert captured.count("\n") == 1
    assert all(part in captured for part in parts), captured


def test_a_wrong_type_deep_inside_is_told_shortly(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace("      - 16\n      - 16\n", "      - 16\n"))
    assert main(["fit", "--config", str(file)]) == 2
    message = capsys.readouterr().err
    assert message == "mmformer: data.image.transform.size: Expected a tuple with 2 elements. Got value: [16]\n"


def test_fit_alone_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    said = "fit needs --config FILE: mmformer init DIR writes one, and configs/runs/ has some to begin with."
    assert capsys.readouterr().err == f"mmformer: {said}\n"


RUNS = sorted((ROOT / "configs" / "runs").glob("*.yaml"))
MODELS = sorted((ROOT / "configs" / "models").glob("*.yaml"))


def test_there_are_runs_to_begin_with() -> None:
    assert RUNS, "configs/runs is empty"


@pytest.mark.parametrize("path", MODELS + RUNS, ids=lambda path: path.stem)
def test_every_file_begins_with_what_it_is(path: Path) -> None:
    """A model: its size and use; a run: its command, the result to expect, the time it takes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    if path in RUNS:
        head = " ".join(line for line in lines if line.startswith("#"))
        assert f"mmformer fit --config {path.relative_to(ROOT)}" in head


@pytest.mark.usefixtures("stand_in_vocabulary")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_parses_and_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = parse(ModelSpec, read_yaml(path), str(path))
    with torch.device("meta"):
        model = spec.build()
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.usefixtures("stand_in_vocabulary")
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_parses_builds_and_takes_a_step(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    data = printed(["--config", str(path)], capsys)
    run = parse(RunSpec, data, str(path))
    assert to_data(run) == data
    with torch.device("meta"):
        run.model.build()
    for source in run.data.named.values():
        if not Path(source.source).exists():
            pytest.skip(f"{source.source} is not here: python -m benchmarks.prepare makes it")
    parts = run.trainer.accumulate_grad_batches
    tiny = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, batch_size=2 * parts, workers=0, test=None),
        trainer=dataclasses.replace(run.trainer, max_steps=1, accelerator="cpu", enable_progress_bar=False),
        evaluation=dataclasses.replace(run.evaluation, every_steps=None),
        checkpoint=dataclasses.replace(run.checkpoint, best=None),
    )
    if run.initial is not None:  # what it begins with is another run's
        base = run.model.build()
        base.initialise(1)
        save_bundle(tmp_path / "base", base, Transforms(), "# Stands in for a trained model\n")
        tiny = dataclasses.replace(tiny, initial=dataclasses.replace(run.initial, path=str(tmp_path / "base")))
    fit(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "bundle" / "model.safetensors").is_file()


def test_the_vocabulary_of_the_tests_is_there() -> None:
    assert Path(VOCABULARY).is_file()
