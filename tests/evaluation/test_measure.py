"""A bundle measured after a recipe: by one process and by two, in two precisions; what is refused before the work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import save_answering, save_classifier, save_dual, save_trimodal, tone
from tiny import COLOURS, write_few, write_shards

from mmformer.config import parse, to_data
from mmformer.data.inputs import LabelInputSpec
from mmformer.errors import InputError
from mmformer.evaluation.captions import CaptionsSpec
from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.few_shot import FewShotSpec
from mmformer.evaluation.measure import Measured, Measurement
from mmformer.evaluation.neighbours import NeighboursSpec
from mmformer.evaluation.recipe import MeasuredSpec, RecipeSpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.evaluation.translation import TranslationSpec
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.generation.sampling import GreedySpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle")


def data(shards: Path, **changes: Any) -> MeasuredSpec:
    """Eight samples in batches of three, so that one of two processes has more."""
    labels = {"colour": LabelInputSpec(str(shards / "colours.txt"), "colour")}
    spec = MeasuredSpec(str(shards), text="json:names.en", references="json:keywords.en", labels=labels, batch_size=3)
    return dataclasses.replace(spec, **changes)


def measured(bundle: Path, recipe: RecipeSpec, processes: int = 1) -> Measured:
    return Measurement(bundle, recipe).run(processes)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(shards: Path, tmp_path: Path) -> None:
    bundle = save_trimodal(tmp_path / "bundle")
    torch.set_num_threads(1)
    metrics = {
        "retrieval": RetrievalSpec(recall=(1, 3), references=True),
        "zero_shot": ZeroShotSpec("colour", str(shards / "colours.txt"), ("{}", "a {} square")),
        "neighbours": NeighboursSpec("colour", neighbours=3),
        "few": FewShotSpec("colour", shots=(2,), draws=3),
        "captions": CaptionsSpec("caption", GreedySpec(max_length=5)),
    }
    recipe = RecipeSpec(data(shards), metrics)
    done: list[int] = []
    one, two = measured(bundle, recipe), Measurement(bundle, recipe).run(2, done.append)
    assert sum(done) == len(Measurement(bundle, recipe)) == 40, "of both splits, by both processes"
    assert one.scores == two.scores, "to the last bit"
    for name, details in one.details.items():
        assert details.cases == two.details[name].cases
        assert details.ways == two.details[name].ways
    assert one.details["retrieval"].ways.keys() == {"image_to_text", "text_to_image"}
    assert one.recipe == two.recipe
    assert {name.split("/")[0] for name in one.scores} == set(metrics)


@pytest.mark.slow
def test_an_error_in_one_of_two_processes_is_told(tmp_path: Path, dual: Path) -> None:
    shards = write_few(tmp_path, png=[b"", b"no picture", b"", b""])
    recipe = RecipeSpec(MeasuredSpec(str(shards), "train", image="png", text="json:names.en", batch_size=1))
    with pytest.raises(InputError, match=r"s1.png: not a whole PNG|has no member"):
        measured(dual, recipe, processes=2)


def test_what_can_be_measured_is_chosen(shards: Path, dual: Path, tmp_path: Path) -> None:
    found = Measurement(dual, RecipeSpec(data(shards)))
    assert dict(found.specs) == {
        "retrieval": RetrievalSpec((("image", "text"),), (1, 5, 10), references=True),
        "colour": AccuracySpec("colour"),
        "zero_shot_colour_image": ZeroShotSpec("colour", str(shards / "colours.txt")),
    }
    assert len(found) == 8, "nothing learns"
    assert len(Measurement(dual, RecipeSpec(data(shards), {"n": NeighboursSpec("colour")}))) == 40
    classifier = save_classifier(tmp_path / "bundle")
    only = Measurement(classifier, RecipeSpec(data(shards, references="", text="")))
    assert dict(only.specs) == {"colour": AccuracySpec("colour")}
    with pytest.raises(InputError, match=r"There is nothing to measure: say what texts \(data.text\) or labels"):
        Measurement(classifier, RecipeSpec(data(shards, references="", text="", labels={})))


def test_sounds_are_found_and_measured(tmp_path: Path) -> None:
    import io

    import soundfile

    sounds = []
    for frequency in (200, 400, 800, 1600):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(frequency), 8000, format="WAV")
        sounds.append(buffer.getvalue())
    shards = write_few(tmp_path / "shards", wav=sounds)
    bundle = save_trimodal(tmp_path / "bundle")
    recipe = RecipeSpec(MeasuredSpec(str(shards), "train", text="json:names.en"))
    found = measured(bundle, recipe)
    assert found.spec.metrics["retrieval"] == RetrievalSpec(
        (("image", "text"), ("image", "sound"), ("text", "sound")), (1, 5, 10)
    )
    assert {"caption/CIDEr", "hear/CIDEr", "retrieval/sound_to_image/R@5"} <= set(found.scores)
    assert (found.recipe["data"]["image"], found.recipe["data"]["audio"]) == ("png", "wav")


def test_precision_is_part_of_the_recipe(shards: Path, dual: Path) -> None:
    recipe = RecipeSpec(data(shards), {"colour": AccuracySpec("colour")})
    full, half = measured(dual, recipe), measured(dual, dataclasses.replace(recipe, dtype="bfloat16"))
    assert half.recipe["dtype"] == "bfloat16"
    pairs = zip(full.details["colour"].cases, half.details["colour"].cases, strict=True)
    gaps = [abs(one.goodness - other.goodness) for one, other in pairs]
    assert 0 < max(gaps) < 0.02


def test_the_recipe_says_what_the_scores_depend_on(shards: Path, dual: Path, tmp_path: Path) -> None:
    classes = str(shards / "colours.txt")
    recipe = RecipeSpec(data(shards), {"z": ZeroShotSpec("colour", classes, ("a {}",))})
    said = measured(dual, recipe).recipe
    json.dumps(said)
    assert said["templates"] == {"z": ["a {}"]}
    assert said["classes"] == {"z": list(COLOURS)}
    assert said["data"]["samples"] == 8
    assert len(said["data"]["manifest_sha256"]) == len(said["bundle"]["sha256"]) == 64
    assert said["transforms"]["image"]["size"] == [16, 16]
    other = measured(save_dual(tmp_path / "bundle", seed=1), recipe).recipe
    assert other["bundle"]["sha256"] != said["bundle"]["sha256"]
    assert other["data"] == said["data"]
    training = measured(dual, dataclasses.replace(recipe, data=data(shards, split="train"))).recipe
    assert training["data"]["keys_sha256"] != said["data"]["keys_sha256"]
    assert parse(RecipeSpec, to_data(recipe), "") == recipe


def test_details_name_the_classes(shards: Path, dual: Path) -> None:
    details = measured(dual, RecipeSpec(data(shards), {"colour": AccuracySpec("colour")})).details["colour"]
    assert details.classified is not None
    assert details.classified.classes == tuple(COLOURS)
    assert {case.right for case in details.cases} <= set(COLOURS)
    assert int(details.classified.confusion.sum()) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tst"}, "There is no split 'tst'.* Did you mean 'test'"),
        ({"text": "csv:title"}, "MeasuredSpec.text must be empty, or txt, or json:FIELD"),
        ({"text": "json:names.fr"}, "there is no field 'names.fr'"),
        ({"references": "json:colour.x"}, "there is no field 'colour.x'"),
        ({"references": "json:number"}, "data.references 'json:number' must be a list of texts, but is"),
        ({"references": "txt"}, "has no member 'txt', which data.references asks for"),
        ({"image": "jpg"}, "jpg"),
        ({"batch_size": 0}, "MeasuredSpec.batch_size must be at least 1"),
        ({"workers": -1}, "MeasuredSpec.workers must be at least 0"),
    ],
)
def test_data_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, shards: Path, dual: Path) -> None:
    with pytest.raises(InputError, match=message):
        measured(dual, RecipeSpec(data(shards, **changes), {"r": RetrievalSpec(references=True)}))


def test_metrics_that_do_not_fit_are_refused_before_the_work(shards: Path, dual: Path) -> None:
    for metric, message in (
        (AccuracySpec("color", "colour"), "AccuracySpec.head is 'color'.* Did you mean 'colour'"),
        (CaptionsSpec(), "the model's decoders are none"),
    ):
        with pytest.raises(InputError, match=message):
            Measurement(dual, RecipeSpec(data(shards), {"m": metric}))
    with pytest.raises(InputError, match="has the name 'a/b'; letters, digits and _ alone make a name"):
        RecipeSpec(data(shards), {"a/b": RetrievalSpec()})
    with pytest.raises(InputError, match="2 processes cannot share cuda:0"):
        measurement = Measurement(dual, RecipeSpec(data(shards)))
        measurement.device = "cuda:0"
        measurement.run(processes=2)


def test_what_reads_texts_is_measured_against_references(shards: Path, tmp_path: Path) -> None:
    bundle = save_answering(tmp_path / "bundle")
    chosen = Measurement(bundle, RecipeSpec(data(shards, labels={}))).specs
    assert chosen["translate"] == TranslationSpec("translate")
    assert chosen["answer"] == CaptionsSpec("answer")
    alone = Measurement(bundle, RecipeSpec(data(shards, labels={}, references=""))).specs
    assert not {"translate", "answer"} & alone.keys(), "its text is what a decoder reads"
