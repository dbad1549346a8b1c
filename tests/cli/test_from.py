"""``from``: a part of a run file that is a file's, or a bundle's, but for what is said over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import save_dual
from tiny import tiny_model, tiny_run

from mmformer.cli.options import merged
from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.models.head import ClassificationHeadSpec
from mmformer.training.run import RunSpec


def read(file: Path, *options: tuple[str, str]) -> RunSpec:
    return parse(RunSpec, merged(RunSpec, [("config", str(file)), *options]), str(file))


def written(folder: Path, model: Any) -> Path:
    """A run file with a model."""
    data = to_data(tiny_run(folder)) | {"model": model}
    (folder / "run.yaml").write_text(yaml.safe_dump(data))
    return folder / "run.yaml"


PROBE = {
    "stacks": {"image": {}},
    "encoders": {"image": {}},
    "heads": {"kind": {"class_path": "ClassificationHeadSpec", "init_args": {"encoder": "image", "classes": 3}}},
}


def test_what_is_said_stands_over_a_file_beside_the_run(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.yaml").write_text(yaml.safe_dump(to_data(tiny_model())))
    whole = read(written(tmp_path, {"from": "models/tiny.yaml"}))
    assert whole.model == tiny_model()
    deeper = read(written(tmp_path, {"from": "models/tiny.yaml", "stacks": {"image": {"depth": 5}, "text": {}}}))
    assert deeper.model.stacks["image"].depth == 5
    assert deeper.model.stacks["text"] == tiny_model().stacks["text"]
    overridden = read(written(tmp_path, {"from": "models/tiny.yaml"}), ("model.stacks.text.depth", "3"))
    assert overridden.model.stacks["text"].depth == 3


def test_a_bundle_gives_its_model_and_its_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of all data, its path is of the folder that the command is called in."""
    save_dual(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    run = read(written(tmp_path, {"from": "bundle", "heads": {"contrastive": {}}}))
    assert list(run.model.heads) == ["contrastive"]
    assert run.model.encoders["image"] == tiny_model().encoders["image"]
    assert Path(run.model.text_encoders()["text"].spec.vocabulary or "").parent == Path("bundle")


def test_parts_that_are_not_named_are_left_out(tmp_path: Path) -> None:
    save_dual(tmp_path / "bundle")
    data = merged(RunSpec, [("config", str(written(tmp_path, {"from": str(tmp_path / "bundle"), **PROBE})))])
    assert list(data["model"]["encoders"]) == ["image"]
    assert list(data["model"]["stacks"]) == ["image"]
    head = data["model"]["heads"]["kind"]
    assert ClassificationHeadSpec(**head["init_args"]) == ClassificationHeadSpec("image", 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"from": "nowhere.yaml"}, r"run\.yaml: model\.from: .*nowhere\.yaml"),
        ({"from": 3}, r"model\.from must be the path of a file or of a bundle, but is 3"),
        ({"from": "bundle", "head": {}}, r"'model\.head'.* Did you mean 'heads'\?"),
    ],
)
def test_what_is_wrong_is_told(model: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dual(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, model))


def test_a_bundle_is_a_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dual(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, {"from": "bundle"})
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, "trainer": {"from": "bundle"}}))
    with pytest.raises(InputError, match=r"trainer\.from: bundle is the bundle of a model, which is not what stands"):
        read(file)
