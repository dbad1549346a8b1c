"""Bundles: whole or refused with a reason, and never running anybody's code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bundles import TRANSFORMS, change, pixels, refused, save_classifier, save_dual
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import COLOURS, VOCABULARY, tiny_model

import mmformer
from mmformer import bundle as module
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.config import to_data
from mmformer.models.model import Model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def equal(first: Model, second: Model) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[name].equal(b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_a_bundle_gives_back_the_same_model(tmp_path: Path) -> None:
    model = tiny_model(classes=len(COLOURS)).build()
    model.initialise(3)
    save_bundle(tmp_path / "deep" / "bundle", model, TRANSFORMS, "# Card: ünïcode\n")
    loaded, transforms = load_bundle(tmp_path / "deep" / "bundle")
    assert equal(model, loaded)
    assert not loaded.training
    assert transforms == TRANSFORMS
    expected, found = to_data(model.spec), to_data(loaded.spec)
    vocabulary = found["encoders"]["text"]["tokenizer"]["init_args"].pop("vocabulary")
    assert expected["encoders"]["text"]["tokenizer"]["init_args"].pop("vocabulary") == VOCABULARY
    assert found == expected
    assert Path(vocabulary).read_bytes() == Path(VOCABULARY).read_bytes()
    names = {path.name for path in (tmp_path / "deep" / "bundle").iterdir()}
    assert names == {"model.yaml", "model.safetensors", "transforms.yaml", "text.model", "README.md"}
    assert (tmp_path / "deep" / "bundle" / "README.md").read_text(encoding="utf-8") == "# Card: ünïcode\n"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_a_bundle_can_be_moved_and_saved_over_itself(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mmformer.load(bundle).embed(text="a cat")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    bundle.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert mmformer.load("moved").embed(text="a cat").equal(expected)
    save_bundle(Path("moved"), *load_bundle("moved"), "# Card\n")
    assert mmformer.load(moved).embed(text="a cat").equal(expected)


def test_a_model_that_reads_images_alone_has_no_vocabulary(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "bundle")
    assert not list(folder.glob("*.model"))
    assert load_bundle(folder)[1] == TRANSFORMS


def test_parameters_in_half_precision_are_read_as_float32(bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in weights.items()}, bundle / "model.safetensors")
    model, _ = load_bundle(bundle)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(value.equal(weights[name].bfloat16().float()) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 99]
)
def test_damaged_parameters_are_refused(bundle: Path, damage: Callable[[bytes], bytes]) -> None:
    path = bundle / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(bundle, f"{path}: damaged, it cannot be read")


@pytest.mark.parametrize("name", ["model.yaml", "model.safetensors", "transforms.yaml"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, f"{bundle}: this is no bundle, for it has no {name}.")


def test_what_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", f"{tmp_path / 'nothing'}: there is no such bundle")
    refused(tmp_path, "this is no bundle, for it has no model.yaml", f"Did you mean {bundle}?")
    refused(bundle / "README.md", "a bundle is a folder, but this is a file")


def test_a_newer_version_is_refused_whatever_it_holds(bundle: Path) -> None:
    change(bundle / "model.yaml", lambda data: {"format": "mmformer", "version": 2, "network": {}})
    refused(bundle, "format version 2", "reads up to 1", "upgrade")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "this is not the model.yaml of a bundle"),
        ("format: other\nversion: 1\nmodel: {}", "this is not the model.yaml of a bundle"),
        ("format: mmformer\nversion: one\nmodel: {}", "this is not the model.yaml of a bundle"),
        ("format: mmformer\nversion: 1", "model must be a mapping, but is None"),
        ("format: mmformer\nversion: 1\nmodel: [1]", "model must be a mapping, but is [1]"),
        ("format: mmformer\nversion: 1\nmodel: {}", "model.yaml"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['exit 3']", "is not valid YAML"),
        ("\0", "is not valid YAML"),
    ],
)
def test_a_model_file_that_is_none(bundle: Path, text: str, message: str) -> None:
    (bundle / "model.yaml").write_text(text)
    refused(bundle, str(bundle / "model.yaml"), message)


def at(*keys: str, value: Any) -> Callable[[Any], None]:
    """An edit: the value under these keys."""

    def edit(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


LAYER = ("model", "stacks", "image", "layer")
MALFORMED = [
    at("model", "encoders", value=[1]),
    at("model", "encoders", value=None),
    at("model", "encoders", "text", value=None),
    at("model", "encoders", "text", "tokenizer", value=None),
    at("model", "encoders", "text", "tokenizer", value=7),
    at("model", "encoders", "text", "tokenizer", "init_args", value=[]),
    at("model", "encoders", "text", "tokenizer", "init_args", "vocabulary", value=5),
    at("model", "encoders", "text", "stack", value="nowhere"),
    at("model", "stacks", value="stacks"),
    at("model", "stacks", "image", "width", value="wide"),
    at("model", "stacks", "image", "width", value=-4),
    at(*LAYER, "mixer", value=["AttentionSpec"]),
    at(*LAYER, "mixer", "init_args", "heads", value=5),
    at(*LAYER, "mixer", "init_args", "haeds", value=2),
    at("model", "surprise", value=1),
]


@pytest.mark.parametrize("edit", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_model_is_refused(bundle: Path, edit: Callable[[Any], None]) -> None:
    change(bundle / "model.yaml", edit)
    refused(bundle)


FOREIGN = [
    at(*LAYER, "mixer", "class_path", value="os.system"),
    at(*LAYER, "mixer", "class_path", value="foreign_code.Thing"),
    at(*LAYER, "mixer", "class_path", value="foreign_code.AttentionSpec"),
    at(*LAYER, "mixer", value="foreign_code.AttentionSpec"),
    at(*LAYER, "mixer", value="sub.yaml"),
    at(*LAYER, "mixer", value='{"class_path": "foreign_code.AttentionSpec"}'),
    at(*LAYER, value="sub.yaml"),
    at("model", "stacks", value="sub.yaml"),
    at("model", "stacks", "image", "layer.mixer", value={"class_path": "foreign_code.AttentionSpec"}),
    at("model", "stacks.image.layer.mixer.class_path", value="foreign_code.AttentionSpec"),
    at("model", "config", value="config.yaml"),
    at("model", "heads", "contrastive", "class_path", value="foreign_code.ContrastiveHeadSpec"),
    at("model", "heads", "contrastive", "class_path", value="AttentionSpec"),
    at("model", "encoders", "image", "pool", value={"class_path": "foreign_code.MeanPoolSpec", "init_args": {}}),
]


@pytest.fixture
def foreign_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that could be imported, and files that would have it imported."""
    (tmp_path / "foreign_code.py").write_text(
        "from mmformer.nn.attention import AttentionSpec\n"
        "from mmformer.nn.pool import MeanPoolSpec\n"
        "from mmformer.models.head import ContrastiveHeadSpec\n"
    )
    mixer = {"class_path": "foreign_code.AttentionSpec", "init_args": {"heads": 2}}
    (tmp_path / "sub.yaml").write_text(yaml.safe_dump({**mixer, "mixer": mixer}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stacks": {"image": {"layer": {"mixer": mixer}}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("foreign_code", None)


@pytest.mark.usefixtures("foreign_code")
@pytest.mark.parametrize("edit", FOREIGN, ids=range(len(FOREIGN)))
def test_no_foreign_code_is_imported(bundle: Path, edit: Callable[[Any], None]) -> None:
    change(bundle / "model.yaml", edit)
    refused(bundle)
    assert "foreign_code" not in sys.modules


TRANSFORM_EDITS = [
    at("image", value="sub.yaml"),
    at("config", value="sub.yaml"),
    at("image", value=5),
    at("audio", value="sub.yaml"),
    at("audio", value=7),
]


@pytest.mark.usefixtures("foreign_code")
@pytest.mark.parametrize("edit", TRANSFORM_EDITS)
def test_the_transforms_are_read_as_carefully(bundle: Path, edit: Callable[[Any], None]) -> None:
    change(bundle / "transforms.yaml", edit)
    refused(bundle, "transforms.yaml")
    assert "foreign_code" not in sys.modules


def test_parameters_that_do_not_fit_are_shown_from_both_sides(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    weights = load_file(path)
    weights["encoders.image.projection.weight"] = torch.zeros(12, 99)
    del weights["heads.contrastive.log_scale"]
    weights["surprise"] = torch.zeros(3)
    save_file(weights, path)
    refused(
        bundle,
        f"{path}: 3 parameters do not fit the model",
        "encoders.image.projection.weight: the model has (12, 16), the file (12, 99)",
        "missing: heads.contrastive.log_scale (1,)",
        "unknown: surprise (3,)",
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"colour": ["red", "blue"]}, "classes.colour has 2 names, but model.yaml has 8 classes for this head"),
        ({"kind": ["red", "blue"]}, "classes.kind has 2 names, but model.yaml has no classification head of this name"),
    ],
)
def test_class_names_must_be_as_many_as_the_classes(bundle: Path, classes: Any, message: str) -> None:
    change(bundle / "transforms.yaml", at("classes", value=classes))
    refused(bundle, str(bundle / "transforms.yaml"), message)


@pytest.mark.parametrize("step", ["save_file", "_write_yaml", "_with_files", "to_data"])
def test_an_interrupted_save_leaves_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    old, _ = load_bundle(bundle)
    new = tiny_model().build()
    new.initialise(1)
    original = getattr(module, step)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        original(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(bundle, new, Transforms(TRANSFORMS.image), "# New\n")
    assert equal(load_bundle(bundle)[0], old)
    assert (bundle / "README.md").read_text() == "# A tiny model\n"
    save_bundle(bundle, new, Transforms(TRANSFORMS.image), "# New\n")
    assert equal(load_bundle(bundle)[0], new)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"], "nothing is left over"


NO_LIGHTNING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"):
            print("asked for", name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
sys.modules["pytorch_lightning"] = None
import torch
torch.set_num_threads(1)
import mmformer
assert "torch" in sys.modules
model = mmformer.load(sys.argv[1])
print(list(model.classify(sys.argv[2], ["cat", "dog"])), len(model.retrieve(text="cat", images=[sys.argv[2]])))
from mmformer.cli.main import main
sys.exit(main(["classify", sys.argv[1], sys.argv[2], "--top", "1"]))
"""


def test_a_bundle_works_without_lightning(whole: Path, tmp_path: Path) -> None:
    """It is blocked, and nobody even asks for it."""
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels(0)).save(picture)
    command = [sys.executable, "-W", "error", "-c", NO_LIGHTNING, str(whole), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "asked for" not in done.stdout
    assert "cat" in done.stdout
    assert "probability" in done.stdout
