"""Several sources in one run: mixed within batches or by turns, and what cannot be mixed."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import VOCABULARY, labels, sample, tiny_data, tiny_model, tiny_run, write_shards

from mmformer.config import parse, read_yaml, to_yaml
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.inputs import ImageInputSpec, TextInputSpec
from mmformer.data.loading import training_loader
from mmformer.data.shards import ShardWriter
from mmformer.data.sources import DataSpec, SourceSpec
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec
from mmformer.types import Batch

NAMES = TextInputSpec("json", FieldCaptionSpec("names.en"))
PLAIN = ImageInputSpec("png", ImageTransformSpec((16, 16), "pad"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples o0, o1, … in two shards."""
    folder = tmp_path_factory.mktemp("others")
    with ShardWriter(folder, "others", samples_per_shard=6) as writer:
        for number in range(12):
            writer.write(sample(f"o{number}", ("red", "blue", "green")[number % 3], number % 2, 0))
    return folder


def pictures(others: Path, **changes: Any) -> SourceSpec:
    return SourceSpec(str(others), **({"image": PLAIN, "text": NAMES} | changes))


def batches(spec: DataSpec, steps: int, first: int = 0, **ranks: int) -> list[Batch]:
    encoder = TextTokensSpec(VOCABULARY, context_length=16).encoder()
    return list(training_loader(spec, {"text": encoder, "target": encoder}, 3, first, steps, **ranks))  # type: ignore[arg-type]


def test_sources_of_one_kind_share_every_batch(shards: Path, others: Path) -> None:
    spec = tiny_data(shards, also={"others": pictures(others, weight=1.0)}, weight=3.0)
    made = batches(spec, 16)
    counts = [Counter("other" if key.startswith("o") else "own" for key in batch.keys) for batch in made]
    assert all(count == {"own": 6, "other": 2} for count in counts)
    own = [key for batch in made for key in batch.keys if not key.startswith("o")]
    alone = [key for batch in batches(tiny_data(shards), 12) for key in batch.keys]
    assert own == alone, "the first source's order is the same, whatever is mixed with it"
    seen = [key for batch in made for key in batch.keys if key.startswith("o")]
    assert set(Counter(seen[:24]).values()) == {2}, "each once an epoch"
    assert [batch.keys for batch in batches(spec, 16, first=9)] == [batch.keys for batch in made[9:]]
    parts = [batches(spec, 16, rank=rank, ranks=2) for rank in range(2)]
    for whole, first, second in zip(made, *parts, strict=True):
        assert sorted(whole.keys) == sorted(first.keys + second.keys)


def test_each_source_is_augmented_in_its_own_way(shards: Path, others: Path) -> None:
    spec = tiny_data(shards, also={"others": pictures(others)})
    plain = dataclasses.replace(spec, image=PLAIN)
    changed, unchanged = batches(spec, 1)[0], batches(plain, 1)[0]
    assert changed.keys == unchanged.keys
    assert changed.image is not None
    assert unchanged.image is not None
    for key, a, b in zip(changed.keys, changed.image, unchanged.image, strict=True):
        assert torch.equal(a, b) == key.startswith("o"), key


def two_kinds(shards: Path, others: Path, **changes: Any) -> RunSpec:
    """Pictures with texts, and texts alone, which a language model learns beside."""
    made = tiny_model()
    layer = LayerSpec(AttentionSpec(heads=2))
    words = TextTokensSpec(VOCABULARY, context_length=16)
    model = ModelSpec(
        made.stacks | {"language": StackSpec(16, 1, layer, RotaryPositionSpec())},
        made.encoders,
        {"language": DecoderSpec(words, "language")},
        made.heads,
    )
    data = {"also": {"texts": pictures(others, image=None)}} | changes.pop("data", {})
    run = tiny_run(shards, data=data, **changes)
    objectives = {"contrastive": ContrastiveSpec(), "language": CaptioningSpec(decoder="language")}
    return dataclasses.replace(run, model=model, objectives=objectives)


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_kinds_take_turns_and_each_is_logged(shards: Path, others: Path, tmp_path: Path) -> None:
    run = two_kinds(shards, others)
    kinds = [batch.image is None for batch in batches(run.data, 6)]
    assert sorted(kinds[:2]) == sorted(kinds[2:4]) == [False, True]
    fit(run, tmp_path / "out")
    logged = [row for row in rows(tmp_path / "out") if row["train/loss"]]
    assert [int(row["step"]) for row in logged] == [1, 2, 3, 4, 5, 6], "the last of every two, of each kind"
    for row in logged:
        assert bool(row["train/contrastive/image_text"]) != kinds[int(row["step"]) - 1]
        assert row["train/language/cross_entropy"]


def test_micro_batches_of_either_kind_are_the_whole(shards: Path, others: Path, tmp_path: Path) -> None:
    whole = two_kinds(shards, others)
    parts = dataclasses.replace(whole, trainer=dataclasses.replace(whole.trainer, accumulate_grad_batches=2))
    fit(whole, tmp_path / "whole")
    fit(parts, tmp_path / "parts")
    for expected, found in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert bool(value) == bool(found[name])
            if name.startswith("train/") and value:
                assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name


def test_a_mixture_resumes_in_the_same_bits(shards: Path, others: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(two_kinds(shards, others), checkpoint=CheckpointSpec(every_steps=1, keep=6))
    whole, again = tmp_path / "whole", tmp_path / "again"
    fit(run, whole)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "bundle")
    kept, *later = sorted(whole_checkpoints(again))[2:]
    for state in later:
        shutil.rmtree(state.parent)
    assert len(later) == 3
    fit(run, again, resume=True)
    expected, found = (load_file(output / "bundle/model.safetensors") for output in (whole, again))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert rows(again) == rows(whole)
    assert kept in whole_checkpoints(again)


def test_a_mixture_comes_back_from_yaml(shards: Path, others: Path, tmp_path: Path) -> None:
    run = two_kinds(shards, others)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert parse(RunSpec, read_yaml(tmp_path / "run.yaml"), "run.yaml") == run


# ------------------------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_mixed_is_refused(shards: Path, others: Path) -> None:
    def mixed(**changes: Any) -> DataSpec:
        return tiny_data(shards, also={"others": pictures(others, **changes)})

    other = ImageInputSpec("png", ImageTransformSpec((24, 24)))
    with pytest.raises(
        InputError, match=r"data.also.others.image.transform is .*24.* but data.image.transform is .*16"
    ):
        mixed(image=other)
    with pytest.raises(InputError, match=r"data.also.others.image, .* are all absent"):
        mixed(image=None, text=None)
    with pytest.raises(InputError, match=r"SourceSpec.weight must be positive, but is 0"):
        mixed(weight=0.0)
    with pytest.raises(InputError, match=r"DataSpec.weight must be left alone .* but is 2.0"):
        tiny_data(shards, weight=2.0)
    with pytest.raises(InputError, match=r"data.batch_size is 9, which data.order.lanes, 2, does not divide"):
        dataclasses.replace(mixed(), batch_size=9)
    elsewhere = {"colour": dataclasses.replace(labels(shards)["colour"], classes="other.txt")}
    with pytest.raises(InputError, match=r"data.also.others.labels.colour.classes is other.txt, but data.labels"):
        tiny_data(shards, labels=labels(shards), also={"others": pictures(others, labels=elsewhere)})


def test_a_source_that_nothing_reads_and_an_objective_without_data_are_refused(
    shards: Path, others: Path, tmp_path: Path
) -> None:
    run = two_kinds(shards, others)
    alone = dataclasses.replace(run, objectives={"contrastive": ContrastiveSpec()})
    with pytest.raises(
        InputError, match=r"Batches with text alone are nothing that any of the objectives \(contrastive"
    ):
        fit(alone, tmp_path / "a")
    apart = dataclasses.replace(
        tiny_run(shards, data={"text": None, "also": {"texts": pictures(others, image=None)}}),
        model=run.model,
        objectives=run.objectives,
        evaluation=EvaluationSpec(),
    )
    with pytest.raises(InputError, match=r"Batches with image alone are nothing"):
        fit(apart, tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
