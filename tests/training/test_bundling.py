"""What a bundle of a run says of classes: what the run learned, and what it took over from the bundle before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from bundles import TRANSFORMS
from tiny import COLOURS, labels, tiny_model, tiny_run, write_shards

from mmformer.bundle import load_bundle, read_transforms, save_bundle
from mmformer.models.head import ClassificationHeadSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.bundling import other_answers, write_bundle
from mmformer.training.initial import InitialSpec
from mmformer.training.run import RunSpec

SHAPES = ["round", "square", "long"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two heads, one of shapes, of which several may be true."""
    spec = tiny_model(classes=len(COLOURS))
    heads = {**spec.heads, "shape": ClassificationHeadSpec("image", len(SHAPES))}
    model = dataclasses.replace(spec, heads=heads).build()
    model.initialise(0)
    classes = {**TRANSFORMS.classes, "shape": SHAPES}
    folder = tmp_path_factory.mktemp("base") / "bundle"
    save_bundle(folder, model, dataclasses.replace(TRANSFORMS, classes=classes, several=("shape", "colour")), "")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def tuned(shards: Path, base: Path, **changes: Any) -> RunSpec:
    given = {"model": load_bundle(base)[0].spec, "initial": InitialSpec(str(base)), "data": {"labels": labels(shards)}}
    return tiny_run(shards, **{**given, "objectives": {"colour": ClassificationSpec(head="colour")}, **changes})


def test_heads_that_a_run_leaves_keep_their_classes(shards: Path, base: Path, tmp_path: Path) -> None:
    """What it trains tells one class of all then, which is said before."""
    run = tuned(shards, base)
    write_bundle(tmp_path / "bundle", run, load_bundle(base)[0], 3, {}, "")
    transforms = read_transforms(tmp_path / "bundle")
    assert transforms.classes == {"colour": list(COLOURS), "shape": SHAPES}
    assert transforms.several == ("shape",)
    (told,) = other_answers(run)
    assert told.startswith("  note: heads.colour learned classes of which several may be true")


def test_heads_that_are_drawn_anew_know_no_classes(shards: Path, base: Path, tmp_path: Path) -> None:
    for changes in ({"initial": InitialSpec(str(base), ("stacks.*", "encoders.*"))}, {"initial": None}):
        run = tuned(shards, base, **changes)
        write_bundle(tmp_path / "bundle", run, run.model.build(), 3, {}, "")
        transforms = read_transforms(tmp_path / "bundle")
        assert (list(transforms.classes), transforms.several) == (["colour"], ())
    assert not other_answers(run)
