"""ViT and DeiT: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from PIL import Image
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.tokenizers.image import ImagePatches
from mmformer.types import Batch, Outputs

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
    **{"image_size": 24, "patch_size": 8, "num_labels": 5},
}
MEAN, STD = [0.48, 0.46, 0.4], [0.27, 0.26, 0.28]
PICTURES = torch.randint(0, 256, (3, 3, 24, 24), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def normalised() -> Tensor:
    """As a processor makes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (PICTURES / 255 - mean) / std


def outputs(model: Model) -> Outputs:
    found: Outputs = model(Batch((), {}, image=PICTURES))
    return found


def made(kind: str, folder: Path, **change: Any) -> Case:
    family = kind.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **change})
    how = {"size": {"height": 24, "width": 24}, "image_mean": MEAN, "image_std": STD}
    transformers.ViTImageProcessor(**how).save_pretrained(folder)
    return saved(getattr(transformers, kind)(config), folder)


CLASSIFIERS = ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.mktemp("vit"), layer_norm_eps=1e-3)


def classes_of(made: Outputs) -> Tensor:
    """Those of the only head, or of the mean of two."""
    return made.logits["classes" if "classes" in made.logits else "own"]


def test_classes(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        ours, theirs = outputs(model.model), case.reference(normalised())
    close(classes_of(ours), theirs.logits, measured="logits")
    if "taught" in ours.logits:
        close(ours.logits["own"], theirs.cls_logits, measured="logits")
        close(ours.logits["taught"], theirs.distillation_logits, measured="logits")
        assert set(model.transforms.classes) == {"classes"}, "the mean decides"


def test_pictures_are_classified(case: Case, tmp_path: Path) -> None:
    """A file, by the names that the config has for classes."""
    model = imported(case, tmp_path / "bundle")
    Image.fromarray(PICTURES[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    (found,) = model.classify([tmp_path / "picture.png"])
    with torch.no_grad():
        expected = case.reference(normalised()).logits[0].softmax(-1)
    assert found == pytest.approx({f"LABEL_{i}": value for i, value in enumerate(expected.tolist())}, abs=1e-6)


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    check_gradients(classes_of(outputs(model)), model, case.reference.train()(normalised()).logits, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", type(case.reference).from_pretrained)


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel"])
def test_tokens_and_the_pooler(kind: str, tmp_path: Path) -> None:
    case = made(kind, tmp_path / "in", hidden_act="gelu_pytorch_tanh", patch_size=4)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = outputs(model), case.reference(normalised())
    close(ours.tokens["image"].x, theirs.last_hidden_state, measured="tokens")
    close(ours.embedding["image"], theirs.pooler_output, measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", type(case.reference).from_pretrained)


def test_a_trunk_without_the_pooler(tmp_path: Path) -> None:
    """DINO's were published so."""
    reference = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False)
    case = saved(reference, tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    assert model.spec.encoders["image"].embedding is None
    with torch.no_grad():
        own = reference(normalised()).last_hidden_state
    tokenizer = model.encoders["image"].tokenizer
    assert isinstance(tokenizer, ImagePatches)
    # No file beside it says these.
    tokenizer.spec = dataclasses.replace(tokenizer.spec, mean=(0.48, 0.46, 0.4), std=(0.27, 0.26, 0.28))
    with torch.no_grad():
        close(outputs(model).embedding["image"], own[:, 0], measured="embeddings")
    check_round_trip(
        case,
        tmp_path / "bundle",
        tmp_path / "out",
        lambda folder: transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"qkv_bias": False}, "qkv_bias False, but .* is True"),
        ({"num_channels": 1}, "num_channels 1, but .* is 3"),
        ({"image_size": [24, 32]}, "is for pictures of 24x32, but the files beside it make them 24x24"),
        ({"pooler_output_size": 8}, "pooler_output_size 8, but .* a pooler_output_size that is hidden_size"),
        ({"image_size": 32}, "is for pictures of 32x32, but the files beside it make them 24x24"),
        ({"hidden_act": "mish"}, "hidden_act 'mish', but .* one of 'gelu'"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    for file in case.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_the_published_size(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind.partition('For')[0]}Config")(num_labels=1000)
    how = {"size": {"height": 224, "width": 224}, "image_mean": MEAN, "image_std": STD}
    transformers.ViTImageProcessor(**how).save_pretrained(tmp_path / "in")
    case = saved(getattr(transformers, kind)(config), tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    pictures = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        theirs = case.reference((pictures / 255 - mean) / std).logits
        ours = classes_of(model(Batch((), {}, image=pictures)))
    close(ours, theirs, 1e-4, measured="logits, full depth")
