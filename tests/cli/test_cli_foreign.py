"""No file and no option of ``fit``, ``validate`` and ``test`` can run code: nothing foreign is even imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import yaml
from typed import change, refused

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass X: pass\nclass AdamWSpec: pass\n"
FOREIGN = {"class_path": "evilpkg.X", "init_args": {}}


@pytest.fixture
def evil(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package beside the run's file that leaves a file when it is imported; and a file that names it."""
    Path("evilpkg.py").write_text(EVIL)
    Path("evil.yaml").write_text("class_path: evilpkg.X\n")
    monkeypatch.syspath_prepend(str(Path().absolute()))
    return file


def assert_not_imported() -> None:
    assert "evilpkg" not in sys.modules
    assert not Path("ran").exists()


def test_the_foreign_package_can_be_imported(evil: Path) -> None:
    """The tests below would see it."""
    importlib.import_module("evilpkg")
    assert Path("ran").exists()
    del sys.modules["evilpkg"]


PLACES = [
    ("optimizer", FOREIGN),
    ("optimizer", "evilpkg.AdamWSpec"),
    ("optimizer.class_path", "evilpkg.AdamWSpec"),
    ("trainer", FOREIGN),
    ("model", FOREIGN),
    ("model.stacks", FOREIGN),
    ("model.stacks.image", FOREIGN),
    ("model.stacks.image.layer.mixer", "evilpkg.X"),
    ("model.stacks.image.layer.mixer", FOREIGN),
    ("model.encoders.image.tokenizer.class_path", "evilpkg.X"),
    ("objectives.contrastive", FOREIGN),
    ("data.image.augment", [FOREIGN]),
    ("data.text.caption", '{"class_path": "evilpkg.X"}'),
    ("data.text.caption", "evil.yaml"),
    ("model", "evil.yaml"),
    ("evaluation.metrics.retrieval", FOREIGN),
    ("seed", FOREIGN),
    ("data.source", FOREIGN),
]


@pytest.mark.parametrize("command", ["--config", "fit --resume", "fit --overwrite", "validate", "test"])
@pytest.mark.parametrize(("path", "value"), PLACES, ids=str)
def test_a_run_file_cannot_run_code(
    command: str, path: str, value: object, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = command != "--config"
    change(Path("run/config.yaml") if saved else evil, path, value)
    Path("run/evil.yaml").write_text("class_path: evilpkg.X\n")  # paths are relative to the file that names them
    words = [*command.split(), "--output", "run"] if saved else ["fit", "--config", str(evil), "--print_config"]
    refused(capsys, *words)
    assert_not_imported()


@pytest.mark.parametrize(("path", "value"), [place for place in PLACES if place[0].startswith("model.")], ids=str)
def test_a_models_file_cannot_run_code(
    path: str, value: object, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(evil, path, value)
    data = yaml.safe_load(evil.read_text())
    Path("model.yaml").write_text(yaml.safe_dump(data["model"]))
    evil.write_text(yaml.safe_dump({**data, "model": "model.yaml"}))
    message = refused(capsys, "fit", "--config", str(evil), "--print_config")
    assert "run.yaml: model: model.yaml: " in message
    assert "model.yaml: " in refused(capsys, "fit", "--config", "run/config.yaml", "--model", "model.yaml")
    assert_not_imported()


@pytest.mark.parametrize(
    "words",
    [
        ["--optimizer", "evilpkg.AdamWSpec"],
        ["--optimizer=evilpkg.X"],
        ["--optimizer", "{class_path: evilpkg.X}"],
        ["--optimizer", '{"class_path": "evilpkg.X", "init_args": {}}'],
        ["--optimizer", "evil.yaml"],
        ["--optimizer", "./evil.yaml"],
        ["--optimizer.class_path", "evilpkg.AdamWSpec"],
        ["--optimizer.init_args", "{class_path: evilpkg.X}"],
        ["--optimizer.init_args.lr", "{class_path: evilpkg.X}"],
        ["--optimizer.help", "evilpkg.AdamWSpec"],
        ["--optimizer.help=evilpkg.AdamWSpec"],
        ["--model", "evil.yaml"],
        ["--model", "evilpkg.X"],
        ["--model.class_path", "evilpkg.X"],
        ["--model.stacks", "{image: {class_path: evilpkg.X}}"],
        ["--model.stacks.image", "evilpkg.X"],
        ["--model.stacks.image.layer", "{mixer: evilpkg.X}"],
        ["--model.stacks.image.layer.mixer", "evilpkg.X"],
        ["--model.stacks.image.layer.mixer.class_path=evilpkg.X"],
        ["--model.stacks.image.position", "evilpkg.X"],
        ["--objectives", "{contrastive: evilpkg.X}"],
        ["--objectives.new", "evilpkg.X"],
        ["--objectives.new.class_path", "evilpkg.X"],
        ["--data.image.augment", "[evilpkg.X]"],
        ["--data.image.augment", "[{class_path: evilpkg.X}]"],
        ["--data.text.training_caption", "{class_path: evilpkg.X}"],
        ["--seed", "{class_path: evilpkg.X}"],
        ["--trainer", "{class_path: evilpkg.X}"],
        ["--optimizer", "!!python/object/new:evilpkg.X {}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_an_option_cannot_run_code(
    command: str, words: list[str], evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, command, "--config", str(evil), "--output", "run", *words)
    assert_not_imported()
