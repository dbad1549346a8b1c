"""``mmformer fit``, ``validate`` and ``test``: what words mean, what mistakes get as an answer, what is printed."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from bundles import trimodal_model
from tiny import tiny_run
from typed import change, refused

from mmformer.cli import report
from mmformer.cli.main import main
from mmformer.models.head import ClassificationHeadSpec
from mmformer.training.run import EvaluationSpec, RunSpec
from mmformer.training.sealing import SEAL


class Started:
    """What the training would have been started with."""

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []

    def fit(self, run: RunSpec, output: Path, resume: bool = False, overwrite: bool = False) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(run=run, output=output, resume=resume, overwrite=overwrite))
        return SimpleNamespace(scores={}, cards=[], taken=None)

    def score_bundle(self, run: RunSpec, bundle: Path, split: str, device: str) -> dict[str, Any]:
        self.calls.append(SimpleNamespace(run=run, bundle=bundle, split=split, device=device))
        return {}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setitem(sys.modules, "mmformer.training.fit", started)  # type: ignore[arg-type]
    return started


@pytest.mark.parametrize(
    ("words", "output", "seed", "resume", "overwrite"),
    [
        ("--config run.yaml", "runs/run", 0, False, False),
        ("--config=run.yaml --output=other", "other", 0, False, False),
        ("--output other --config run.yaml --seed=5", "other", 5, False, False),
        ("--resume --output=run", "run", 7, True, False),
        ("--output run --resume", "run", 7, True, False),
        ("--output=run --resume --seed 8", "run", 8, True, False),
        ("--seed 8 --output=run --resume", "run", 8, True, False),
        ("--output=run --overwrite", "run", 7, False, True),
        ("--overwrite --output run", "run", 7, False, True),
        ("--overwrite --output=run --config run.yaml", "run", 0, False, True),
        ("--resume --config run.yaml", "runs/run", 0, True, False),
        ("--output other --output run --resume", "run", 7, True, False),
    ],
)
def test_what_is_started(
    words: str, output: str, seed: int, resume: bool, overwrite: bool, file: Path, started: Started
) -> None:
    change(Path("run/config.yaml"), "seed", 7)
    assert main(["fit", *words.split()]) == 0
    (call,) = started.calls
    assert (call.output, call.run.seed, call.resume, call.overwrite) == (Path(output), seed, resume, overwrite)
    assert Path("run/config.yaml").is_file()


def test_continue_goes_on_where_there_is_a_checkpoint(file: Path, started: Started) -> None:
    Path("run/checkpoints/step-000000004.partial").mkdir(parents=True)
    assert main(["fit", "--output", "run", "--continue"]) == 0
    whole = Path("run/checkpoints/step-000000002")
    whole.mkdir()
    (whole / SEAL).touch()
    assert main(["fit", "--output", "run", "--continue"]) == 0
    assert [(call.resume, call.overwrite) for call in started.calls] == [(False, True), (True, False)]


def test_continue_begins_anew_where_there_is_a_best_model_and_no_checkpoint(file: Path, started: Started) -> None:
    """It was killed in between. What trained to its end is not thrown away so."""
    Path("run/best").mkdir()
    assert main(["fit", "--output", "run", "--continue"]) == 0
    Path("run/bundle").mkdir()
    assert main(["fit", "--output", "run", "--continue"]) == 0
    assert [(call.resume, call.overwrite) for call in started.calls] == [(False, True), (False, False)]


@pytest.mark.parametrize("other", ["resume", "overwrite"])
def test_continue_is_said_alone(other: str, file: Path, started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--output", "run", "--continue", f"--{other}"]) == 2
    assert f"leave --{other} out, or --continue" in capsys.readouterr().err
    assert not started.calls


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("words", [["--output", "run"], ["--output=run"]])
def test_what_is_measured(command: str, split: str, words: list[str], file: Path, started: Started) -> None:
    assert main([command, *words, "--device=cpu", "--json"]) == 0
    (call,) = started.calls
    assert (call.bundle, call.split, call.device) == (Path("run/bundle"), split, "cpu")


def test_an_existing_run_is_read_before_it_is_replaced(
    file: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing: a run is started, replaced by itself, and what is printed at its end can be typed."""
    Path("run/config.yaml").unlink()
    words = ["--trainer.max_steps", "2", "--checkpoint.every_steps", "null"]
    assert main(["fit", "--config", str(file), "--output=a b", *words]) == 0
    Path("a b/left").touch()
    assert main(["fit", "--output=a b", "--overwrite", "--trainer.max_steps=1"]) == 0
    assert not Path("a b/left").exists()
    saved = yaml.safe_load(Path("a b/config.yaml").read_text())
    assert (saved["trainer"]["max_steps"], saved["checkpoint"]["every_steps"]) == (1, None)
    printed = capsys.readouterr().out.rpartition("Try next:\n")[2].splitlines()
    assert [line.split()[1] for line in printed] == ["classify", "retrieve", "test"]
    for line in printed:
        assert main(shlex.split(line)[1:]) == 0, line


WRONG: list[tuple[str, list[str]]] = [
    ("--model.stacks.image.depht 3", ["unknown key 'model.stacks.image.depht'", "Did you mean 'depth'?"]),
    ("--model.stacks.image.layer.mixer.head=3", ["key 'model.stacks.image.layer.mixer.head'", "'heads'?"]),
    ("--model.stacks.imag.depht 3", ["unknown key 'model.stacks.imag.depht'", "Did you mean 'depth'?"]),
    (
        "--model.stacks.imag.depth 3",
        ["there is no stack 'imag'; the stacks are image, text.", "Did you mean 'image'?", "--model.stacks.imag.width"],
    ),
    ("--model.encoders.txt.causal true", ["there is no encoder 'txt'; the encoders are image, text.", "'text'?"]),
    (
        "--objectives.contrastiv.weight 3",
        ["there is no objective 'contrastiv'", "'contrastive'?", "--objectives.contrastiv.class_path"],
    ),
    ("--data.labels.x.field y", ["there is no label 'x'; there is none yet.", "--data.labels.x.classes"]),
    ("--cofnig x.yaml", ["unknown option '--cofnig'. Did you mean '--config'?"]),
    ("--cofnig=x.yaml", ["unknown option '--cofnig'. Did you mean '--config'?"]),
    ("--ouptut x", ["unknown option '--ouptut'. Did you mean '--output'?"]),
    ("--resme", ["unknown option '--resme'. Did you mean '--resume'?"]),
    ("--overwite", ["unknown option '--overwite'. Did you mean '--overwrite'?"]),
    ("--print-config", ["unknown option '--print-config'. Did you mean '--print_config'?"]),
    ("--sed 3", ["unknown option '--sed'. Did you mean '--seed'?"]),
    ("--resume=yes", ["--resume takes no value, but was given 'yes'."]),
    ("--seed", ["--seed needs a value after it."]),
    ("--seed --resume", ["--seed needs a value after it."]),
    ("--output", ["--output needs a value after it."]),
    ("-x 3", ["unknown option '-x'."]),
    ("--output.x 3", ["unknown option '--output.x'. Did you mean '--output'?"]),
    ("--model nosuch.yaml", ["model: nosuch.yaml cannot be read: No such file or directory."]),
    ("--model.stacks.image no/such.yaml", ["model.stacks.image: no/such.yaml cannot be read: No such file"]),
    ("--model.stacks.image.depth abc", ["model.stacks.image.depth: Expected int. Got value: 'abc'"]),
    ("--model.stacks.image.depth null", ["model.stacks.image.depth must be int, but is null."]),
    ("--model.stacks.image.layer.mixer.heads abc", ["image.layer.mixer.heads: Expected int. Got value: 'abc'"]),
    ("--optimizer.betas [a,0.9]", ["optimizer.betas.0: Expected float. Got value: 'a'"]),
    ("--optimizer.lr.x 3", ["unknown key 'optimizer.lr.x': optimizer.lr is one value."]),
    ("--data.image.augment.0.probability 1", ["data.image.augment is a list: give it whole"]),
    ("--data.image.augment [x", ["--data.image.augment is not valid YAML"]),
    (
        "--schedule ConstantScheduleSpec --schedule.final 1",
        ["unknown key 'schedule.final'", "Known here: warmup_steps"],
    ),
]


@pytest.mark.parametrize(("words", "parts"), WRONG)
def test_a_mistake_gets_one_clear_line(
    words: str, parts: list[str], file: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "fit", "--config", str(file), *words.split())
    assert all(part in message for part in parts), message
    assert not started.calls


def test_what_is_wrong_is_told_where_no_file_is_given_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model: nosuch.yaml cannot be read: No such file" in refused(capsys, "fit", "--model", "nosuch.yaml")
    assert "'--cofnig'. Did you mean '--config'?" in refused(capsys, "fit", "--cofnig", "x.yaml")
    assert "fit needs --config FILE" in refused(capsys, "fit", "--seed", "3")
    assert "test needs --output DIR" in refused(capsys, "test", "--config", "run.yaml")
    for words in (["--output=empty"], ["--output", "empty", "--resume"], ["--output=empty", "--overwrite"]):
        assert "empty: there is no run in this folder" in refused(capsys, "fit", *words)


def test_a_key_twice_in_an_option_or_file_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = refused(capsys, "fit", "--config", str(file), "--data.order", "{block: 8, block: 16}")
    assert "--data.order" in twice and "the key 'block' is there twice" in twice
    file.write_text(file.read_text() + "seed: 3\n")
    assert "run.yaml is not valid YAML: the key 'seed' is there twice" in refused(capsys, "fit", "--config", str(file))


def test_files_that_name_each_other_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop.yaml").write_text("class_path: WordDropoutCaptionSpec\ninit_args: {caption: loop.yaml}\n")
    message = refused(capsys, "fit", "--config", str(file), "--data.text.caption", "./loop.yaml")
    assert "loop.yaml: this file names itself" in message


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["fit", "--config", "run.yaml", *words, "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


def test_a_new_entry_whose_required_fields_are_given_is_added(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ("class_path=RetrievalSpec", "recall=[1]")
    metrics = printed(capsys, *(f"--evaluation.metrics.retrievl.{word}" for word in new))["evaluation"]["metrics"]
    assert list(metrics) == ["retrieval", "retrievl"]
    assert metrics["retrievl"]["init_args"]["recall"] == [1]
    words = ["--model.stacks.trunk.width=16", "--model.stacks.trunk.depth=3", "--model.encoders.image.stack", "trunk"]
    stacks = "{text: {}, trunk: {}}"  # those that are not named here are gone
    model = printed(capsys, *words[:2], "--model.stacks", stacks, words[2], words[3])["model"]
    assert {name: stack["depth"] for name, stack in model["stacks"].items()} == {"text": 1, "trunk": 3}


def test_options_override_in_the_order_of_the_words(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text("seed: 3\nschedule: ConstantScheduleSpec\nevaluation: {metrics: {}}\n")
    data = printed(capsys, "--seed", "1", "--config", "more.yaml", "--schedule.warmup_steps", "4")
    assert data["seed"] == 3
    assert data["schedule"] == {
        "class_path": "ConstantScheduleSpec",
        "init_args": {"warmup_steps": 4, "cooldown_steps": 0},
    }
    assert data["evaluation"]["metrics"] == {}
    assert printed(capsys, "--config", "more.yaml", "--seed=-1", "--seed", "2")["seed"] == 2


def test_one_mapping_used_twice_in_a_file_is_changed_in_one_place(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(file.read_text())
    data["model"]["stacks"]["text"] = data["model"]["stacks"]["image"]
    file.write_text(yaml.safe_dump(data))
    assert "*id001" in file.read_text()
    stacks = printed(capsys, "--model.stacks.image.layer.mixer.heads", "4")["model"]["stacks"]
    assert [stacks[name]["layer"]["mixer"]["init_args"]["heads"] for name in ("image", "text")] == [4, 2]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_names_the_commands_own_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: mmformer {command}")
    assert "--trainer.max_steps" in out and "--output" in out
    assert ("--resume" in out) == ("--print_config" in out) == (command == "fit")
    with pytest.raises(SystemExit):
        main([command, "--optimizer.help", "AdamWSpec"])
    assert "--optimizer.betas" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "original", "on_path", "said"),
    [
        (".venv/bin/mmformer", "python", "", ".venv/bin/mmformer"),
        ("/x/bin/mmformer", "python", "/x/bin/mmformer", "mmformer"),
        ("/x/bin/mmformer", "python", "/y/bin/mmformer", "/x/bin/mmformer"),
        ("/x/my env/mmformer", "python", "", "'/x/my env/mmformer'"),
        ("/x/mmformer/__main__.py", "python", "", "python -m mmformer"),
        ("/x/mmformer/__main__.py", ".venv/bin/python", "", ".venv/bin/python -m mmformer"),
        ("/x/pytest", "python", "", "mmformer"),
        ("-c", "python", "", "mmformer"),
    ],
)
def test_the_program_is_called_as_it_was(
    argv: str, original: str, on_path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argv, "fit"])
    monkeypatch.setattr(sys, "orig_argv", [original, "fit"])
    monkeypatch.setattr(report.shutil, "which", lambda name: on_path or None)
    assert report.program() == said


def test_the_next_commands_name_pictures_that_are_there(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [".venv/bin/mmformer"])
    run, output = tiny_run(shards), Path("runs/x")
    report.print_end(run, output, {})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "The model: runs/x/bundle",
        "",
        "Try next:",
        '  .venv/bin/mmformer classify runs/x/bundle PICTURE.png --labels "cat,dog,pizza"',
        '  .venv/bin/mmformer retrieve runs/x/bundle --images FOLDER "a red heart"',
        "  .venv/bin/mmformer test --output runs/x",
    ]
    (output / "pictures").mkdir(parents=True)
    for name in ("red_apple.png", "dog.png", "pear.jpg", "clown_fish.png", "zebra.png", "notes.txt", ".hidden.png"):
        (output / "pictures" / name).touch()
    report.print_end(run, output, {})
    assert capsys.readouterr().out.splitlines()[4:] == [
        '  .venv/bin/mmformer classify runs/x/bundle runs/x/pictures/clown_fish.png --labels "clown fish,dog,pear,'
        'red apple"',
        '  .venv/bin/mmformer retrieve runs/x/bundle --images runs/x/pictures "clown fish"',
        "  .venv/bin/mmformer test --output runs/x",
    ]


@pytest.mark.parametrize(
    ("decoders", "offered"),
    [("caption", True), ("hear", False), ("hear caption", True), ("caption caption", False), ("", False)],
)
def test_a_caption_is_offered_where_one_decoder_reads_pictures(decoders: str, offered: bool, shards: Path) -> None:
    model, run = trimodal_model(), tiny_run(shards)
    named = {f"{name}_{place}": model.decoders[name] for place, name in enumerate(decoders.split())}
    object.__setattr__(model, "decoders", named)
    object.__setattr__(run, "model", model)  # past the checks: only what decoders read is asked here
    commands = report.next_commands(run, Path("runs/x"))
    assert any(command.startswith("caption ") for command in commands) == offered


def test_what_a_model_cannot_do_is_not_offered(shards: Path) -> None:
    model, run = trimodal_model(), tiny_run(shards)
    asked = dataclasses.replace(model.decoders["caption"], reads={"image": "cross", "text": "cross"})
    object.__setattr__(model, "decoders", {"answer": asked})
    object.__setattr__(model, "heads", {})
    object.__setattr__(run, "model", model)
    object.__setattr__(run, "evaluation", EvaluationSpec())
    assert report.next_commands(run, Path("x")) == ['caption x/bundle FOLDER --text "what is it?"']
    object.__setattr__(model, "decoders", {})
    object.__setattr__(model, "heads", {"group": ClassificationHeadSpec("image", 3)})
    assert report.next_commands(run, Path("x")) == ["classify x/bundle PICTURE.png"]


def test_a_disk_that_is_full_is_told_with_the_runs_folder(
    file: Path, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(started, "fit", full)
    message = refused(capsys, "fit", "--config", str(file))
    assert message == "mmformer: runs/run: No space left on device. Make room there, or write elsewhere.\n"
