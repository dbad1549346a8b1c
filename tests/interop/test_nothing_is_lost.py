"""What a class of another library has no place for keeps a model from going out as one, in whole or in part."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, imported, saved

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.config import parse, read_yaml, to_data
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError
from mmformer.interop import plain
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.interop.origin import FOLDER
from mmformer.interop.source import families_of
from mmformer.models.head import ClassificationHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SEEN = SIZES | {"image_size": 16, "patch_size": 8}
LAYER = {"width": 32, "depth": 2, "layer.mixer.heads": 4, "layer.feedforward.hidden_width": 48}


def clip(**changes: Any) -> ModelSpec:
    """A small one of ``configs/models/clip.yaml``, with values at some paths."""
    data = to_data(parse(ModelSpec, read_yaml("configs/models/clip.yaml"), "clip"))
    small: dict[str, Any] = {f"stacks.{s}.{path}": value for s in ("image", "text") for path, value in LAYER.items()}
    small |= {f"encoders.{name}.embedding": 24 for name in ("image", "text")}
    small |= {"encoders.text.tokenizer.rows": 99, "encoders.text.tokenizer.ids": {"bos": 97, "eos": [98]}}
    for path, value in {**small, **changes}.items():
        plain.put(data, path, value)
    return parse(ModelSpec, data, "clip")


def kept(spec: ModelSpec, bundle: Path) -> Path:
    model = spec.build().eval()
    model.initialise(0)
    save_bundle(bundle, model, Transforms(), "")
    return bundle


def test_a_pair_of_towers_goes_out_as_one_or_not_at_all(tmp_path: Path) -> None:
    """CLIPModel has no bias, CLIPVisionModelWithProjection no text: neither is this model."""
    assert "(CLIPModel)" in export_model(kept(clip(), tmp_path / "clip"), "hf", tmp_path / "out")
    biased = kept(clip(**{"heads.contrastive.bias": -10.0}), tmp_path / "biased")
    with pytest.raises(InputError, match=r"no clip \(CLIPModel\): its heads\.contrastive\.bias is -10\.0"):
        export_model(biased, "hf", tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    (picture,) = (family for family in families_of("hf") if family.name == "clip_vision_model")
    with pytest.raises(InputError, match=r"\(CLIPVisionModelWithProjection\): it has stacks\.text, which that has not"):
        picture.config(clip(), "CLIPVisionModelWithProjection", "it")


def test_a_tower_by_itself_goes_out_as_one(tmp_path: Path) -> None:
    whole = clip()
    alone = ModelSpec({"image": whole.stacks["image"]}, {"image": whole.encoders["image"]})
    told = export_model(kept(alone, tmp_path / "image"), "hf", tmp_path / "out")
    assert "(CLIPVisionModelWithProjection)" in told


@pytest.fixture
def trunk(tmp_path: Path) -> Case:
    made = transformers.ViTModel(transformers.ViTConfig(**SEEN), add_pooling_layer=False)
    return saved(made, tmp_path / "trunk")


def test_a_trunk_that_was_given_a_head_goes_out_with_it(trunk: Case, tmp_path: Path) -> None:
    """The way of those who tune a published trunk: it came as one class, and is another now."""
    imported(trunk, tmp_path / "bundle")
    old, transforms = load_bundle(tmp_path / "bundle")
    model = dataclasses.replace(old.spec, heads={"classes": ClassificationHeadSpec("image", 5)}).build().eval()
    model.initialise(0)
    model.load_state_dict(old.state_dict(), strict=False)
    came = {f"{FOLDER}/{file.name}": file.read_bytes() for file in (tmp_path / "bundle" / FOLDER).iterdir()}
    save_bundle(tmp_path / "tuned", model, transforms, "", came)
    assert "(ViTForImageClassification)" in export_model(tmp_path / "tuned", "hf", tmp_path / "out")
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(Batch((), {}, values)).logits["classes"]
        torch.testing.assert_close(ours, reference(values).logits, atol=1e-5, rtol=1e-5)
    assert reference.config.num_labels == 5


def test_a_head_of_another_kind_is_not_left_out(trunk: Case, tmp_path: Path) -> None:
    imported(trunk, tmp_path / "bundle")
    spec = load_bundle(tmp_path / "bundle")[0].spec
    hidden = ClassificationHeadSpec("image", 5, hidden=16)
    bundle = kept(dataclasses.replace(spec, heads={"classes": hidden}), tmp_path / "hidden")
    with pytest.raises(InputError, match=r"no vit \(ViTForImageClassification\): its heads\.classes\.hidden is 16"):
        export_model(bundle, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_classes_of_which_several_may_be_true_are_told_each_by_itself(kind: str, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SEEN, num_labels=3, problem_type=kind)
    case = saved(transformers.ViTForImageClassification(config), tmp_path / "in")
    told = " ".join(import_model(f"hf:{case.folder}", tmp_path / "bundle").notes)
    assert ("its problem_type is regression, but what classify says" in told) == (kind == "regression")
    model, transforms = load_bundle(tmp_path / "bundle")
    assert transforms.several == (("classes",) if kind.startswith("multi") else ())
    pictures = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8).numpy()
    save_bundle(
        tmp_path / "made", model, dataclasses.replace(transforms, image=ImageTransformSpec((16, 16), "squash")), ""
    )
    answers = mmformer.load(tmp_path / "made").classify(list(pictures))
    sums = [sum(answer.values()) for answer in answers]
    assert all((abs(total - 1) < 1e-5) != kind.startswith("multi") for total in sums)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == kind
    export_model(tmp_path / "made", "hf", tmp_path / "again")
    said = json.loads((tmp_path / "again/config.json").read_text()).get("problem_type")
    assert said == (kind if kind.startswith("multi") else None)


def test_a_config_that_reads_texts_elsewhere_does_not_say_what_the_model_is(tmp_path: Path) -> None:
    """As one would be that came with a model whose vocabulary is another now."""
    (family,) = (family for family in families_of("hf") if family.name == "clip")
    spec, other = clip(), clip(**{"encoders.text.tokenizer.ids": {"bos": 97, "eos": [5]}})
    config = family.config(spec, "CLIPModel", "it")
    assert family.says(config, spec, "CLIPModel", "it")
    assert not family.says(config, other, "CLIPModel", "it")
    assert family.config(other, "CLIPModel", "it")["text_config"]["eos_token_id"] == 5
    highest = {**config, "text_config": {**config["text_config"], "eos_token_id": 2}}
    assert family.says(highest, spec, "CLIPModel", "it"), "which means the highest id"
    assert not family.says(highest, other, "CLIPModel", "it")
