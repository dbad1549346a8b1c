"""DINOv2, without registers and with: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2, "num_labels": 5},
    **{"image_size": 40, "patch_size": 8, "layer_norm_eps": 1e-3},
}
MEAN, STD = [0.48, 0.46, 0.4], [0.27, 0.26, 0.28]
SMALL, WHOLE = (24, 32), (40, 40)


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (3, 3, *size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def normalised(size: tuple[int, int]) -> Tensor:
    """As a processor makes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures(size) / 255 - mean) / std


def outputs(model: Model, size: tuple[int, int]) -> Outputs:
    found: Outputs = model(Batch((), {}, image=pictures(size)))
    return found


def made(kind: str, folder: Path, size: tuple[int, int], **change: Any) -> Case:
    """A processor for pictures of a size, and a model that learned positions at 40x40, five by five patches."""
    family = kind.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **change})
    how = {"size": {"shortest_edge": max(size) + 16}, "crop_size": {"height": size[0], "width": size[1]}}
    transformers.BitImageProcessor(**how, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return saved(getattr(transformers, kind)(config), folder)


@pytest.fixture(scope="module", params=["Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    more = {"num_register_tokens": 3} if "Registers" in request.param else {}
    return made(request.param, tmp_path_factory.mktemp("dino"), SMALL, **more)


def test_classes_of_pictures_of_another_size(case: Case, tmp_path: Path) -> None:
    """Positions are resized as each of the two resizes them."""
    model = imported(case, tmp_path / "bundle").model
    position = model.spec.stacks["image"].position
    assert (position.sizes, position.learned) == ((3, 4), (5, 5))  # type: ignore[attr-defined]
    with torch.no_grad():
        close(outputs(model, SMALL).logits["classes"], case.reference(normalised(SMALL)).logits, measured="logits")


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    theirs = case.reference.train()(normalised(SMALL)).logits
    check_gradients(outputs(model, SMALL).logits["classes"], model, theirs, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    """The mask token, which nothing reads, goes along."""
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", type(case.reference).from_pretrained)


@pytest.mark.parametrize("kind", ["Dinov2Model", "Dinov2WithRegistersModel"])
@pytest.mark.parametrize("gated", [False, True])
def test_tokens_and_the_embedding(kind: str, gated: bool, tmp_path: Path) -> None:
    case = made(kind, tmp_path / "in", WHOLE, use_swiglu_ffn=gated, hidden_act="gelu_pytorch_tanh", mlp_ratio=3)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = outputs(model, WHOLE), case.reference(normalised(WHOLE))
    close(ours.tokens["image"].x, theirs.last_hidden_state, measured="tokens")
    close(ours.embedding["image"], theirs.pooler_output, measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", type(case.reference).from_pretrained)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drop_path_rate": 0.1}, r"drop_path_rate 0.1, but .* is 0.0"),
        ({"hidden_act": "mish"}, "hidden_act 'mish', but .* a hidden_act of gelu"),
        ({"use_swiglu_ffn": True}, "missing: dinov2.*weights_in"),
        ({"image_size": 48}, "but the config asks for"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    for file in case.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")


def test_how_pictures_are_prepared_goes_out_too(case: Case, tmp_path: Path) -> None:
    """Of a model that did not come from there: a processor of the class that such models have."""
    imported(case, tmp_path / "bundle")
    for file in (tmp_path / "bundle/origin").iterdir():
        file.unlink()
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    first = transformers.AutoImageProcessor.from_pretrained(case.folder)
    for picture in torch.randint(0, 256, (2, 3, 60, 50), generator=torch.Generator().manual_seed(3)).to(torch.uint8):
        theirs, ours = (each(picture, return_tensors="pt")["pixel_values"] for each in (first, processor))
        assert torch.equal(theirs, ours)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"])
def test_the_published_size(kind: str, tmp_path: Path) -> None:
    """Positions that were learned at 518, pictures of 224."""
    size = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "patch_size": 14}
    case = made(kind, tmp_path / "in", (224, 224), **size, image_size=518, num_labels=1000, layer_norm_eps=1e-6)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = outputs(model, (224, 224)), case.reference(normalised((224, 224)))
    close(ours.logits["classes"], theirs.logits, 1e-4, measured="logits, full depth")
