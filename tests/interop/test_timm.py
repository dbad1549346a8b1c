"""timm's vision transformers (ViT, DeiT, DINOv2, towers of SigLIP and CLIP): the way in, its numbers, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, randomise
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs

timm = pytest.importorskip("timm", reason="the reference")

SMALL: dict[str, Any] = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_base_patch16_224", {"num_classes": 5}),
    "mean": ("vit_base_patch16_224", {"num_classes": 5, "global_pool": "avg", "class_token": False}),
    "rectangle": ("vit_base_patch16_224", {"num_classes": 3, "img_size": (24, 32)}),
    "deit": ("deit_base_distilled_patch16_224", {"num_classes": 5}),
    "dinov2": ("vit_base_patch14_dinov2", {"num_classes": 0}),
    "registers": ("vit_base_patch14_reg4_dinov2", {"num_classes": 0}),
    "gated": ("vit_giant_patch14_reg4_dinov2", {"num_classes": 5, "mlp_ratio": 3.0}),
    "siglip": ("vit_base_patch16_siglip_224", {"num_classes": 0, "img_size": 26}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 6}),
}
MEAN, STD = (0.48, 0.46, 0.4), (0.27, 0.26, 0.28)


def pictures(case: Case) -> Tensor:
    size = case.reference.patch_embed.img_size
    return torch.randint(0, 256, (3, 3, *size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def normalised(case: Case) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures(case) / 255 - mean) / std


def outputs(model: Model, case: Case) -> Outputs:
    found: Outputs = model(Batch((), {}, image=pictures(case)))
    return found


def made(kind: str, folder: Path) -> Case:
    """One of the kinds, small; or an architecture as it was published."""
    name, options = KINDS[kind] if kind in KINDS else (kind, PUBLISHED[kind])
    reference = timm.create_model(name, **{**(SMALL if kind in KINDS else {}), **options})
    randomise(reference)
    height, width = reference.patch_embed.img_size
    how = {"input_size": (3, height, width), "mean": MEAN, "std": STD, "crop_pct": 1.0}
    reference.pretrained_cfg = {**reference.pretrained_cfg, **how}
    timm.models.save_for_hf(reference.eval(), str(folder), safe_serialization=True)
    return Case(reference, folder)


def opened(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.mktemp(request.param))


def test_tokens_and_what_the_head_makes(case: Case, tmp_path: Path) -> None:
    model, reference = imported(case, tmp_path / "bundle", "timm").model, case.reference
    with torch.no_grad():
        ours, tokens = outputs(model, case), reference.forward_features(normalised(case))
        close(ours.tokens["image"].x, tokens, measured="tokens")
        if reference.num_classes:
            close(ours.logits["classes"], reference.forward_head(tokens), measured="logits")
        else:
            close(ours.embedding["image"], reference.forward_head(tokens), measured="embeddings")


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle", "timm").model.train()
    made, theirs = outputs(model, case), case.reference.train()(normalised(case))
    ours = made.logits["classes"] if case.reference.num_classes else made.embedding["image"]
    check_gradients(ours, model, theirs, case, "timm")
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle", "timm")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", opened, "timm")


def test_a_model_of_another_origin_goes_out_as_timms(case: Case, tmp_path: Path) -> None:
    """What was not imported has its config from what it is."""
    imported(case, tmp_path / "bundle", "timm")
    (tmp_path / "bundle/origin/origin.json").unlink()
    export_model(tmp_path / "bundle", "timm", tmp_path / "out")
    theirs, again = case.reference.state_dict(), opened(tmp_path / "out").eval()
    assert theirs.keys() == again.state_dict().keys()
    with torch.no_grad():
        close(again(normalised(case)), case.reference(normalised(case)), measured="outputs")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "vit_huge"}, "'vit_huge' is no architecture that timm has"),
        ({"model_args": {**SMALL, "qk_norm": True}}, "with options that are not known: .*_norm"),
        ({"model_args": {**SMALL, "dynamic_img_size": True}}, "with options that are not known: dynamic_img_size"),
        ({"model_args": {**SMALL, "depth": 2}}, "left over: blocks.2"),
        ({"model_args": {**SMALL, "depths": 2}}, "one that timm does not build so"),
        ({"model_args": {**SMALL, "norm_layer": "rmsnorm"}}, "with GELU and RmsNorm, which are not known"),
        ({"model_args": {**SMALL, "img_size": 32}}, "is for pictures of 32x32, but the files beside it make them 24"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, change: dict[str, object], told: str) -> None:
    case = made("vit", tmp_path / "in")
    config = json.loads((case.folder / "config.json").read_text())
    (case.folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=told):
        import_model(f"timm:{case.folder}", tmp_path / "bundle")


def test_a_model_of_another_kind_is_told(tmp_path: Path) -> None:
    timm.models.save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "in"), safe_serialization=True)
    with pytest.raises(InputError, match="'test_resnet' is a ResNet, but of timm mmformer reads plain vision"):
        import_model(f"timm:{tmp_path / 'in'}", tmp_path / "bundle")


def test_names_of_classes_come_along(tmp_path: Path) -> None:
    case = made("vit", tmp_path / "in")
    config = json.loads((case.folder / "config.json").read_text())
    (case.folder / "config.json").write_text(json.dumps({**config, "label_names": list("abcde")}))
    assert imported(case, tmp_path / "bundle", "timm").transforms.classes == {"classes": list("abcde")}
    (tmp_path / "bundle/origin/origin.json").unlink()
    export_model(tmp_path / "bundle", "timm", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == list("abcde")


def test_how_pictures_are_prepared_goes_out_too(tmp_path: Path) -> None:
    """Of a model without an origin, for timm's defaults are others; and where it was changed since it came."""
    case = made("vit", tmp_path / "in")
    imported(case, tmp_path / "bundle", "timm")
    (tmp_path / "bundle/origin/origin.json").rename(tmp_path / "origin.json")
    export_model(tmp_path / "bundle", "timm", tmp_path / "out")
    said = timm.data.resolve_data_config({}, model=opened(tmp_path / "out"))
    assert [tuple(said[key]) for key in ("input_size", "mean", "std")] == [(3, 24, 24), MEAN, STD]
    assert said["crop_pct"] == 1.0
    (tmp_path / "origin.json").rename(tmp_path / "bundle/origin/origin.json")
    file = tmp_path / "bundle/model.yaml"
    file.write_text(file.read_text().replace("0.46", "0.5"))
    export_model(tmp_path / "bundle", "timm", tmp_path / "changed")
    config = json.loads((tmp_path / "changed/config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.48, 0.5, 0.4]


PUBLISHED: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "vit_base_patch14_reg4_dinov2": {"img_size": 224},
    "vit_base_patch16_siglip_224": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size(name: str, tmp_path: Path) -> None:
    case = made(name, tmp_path / "in")
    model = imported(case, tmp_path / "bundle", "timm").model
    with torch.no_grad():
        ours, tokens = outputs(model, case), case.reference.forward_features(normalised(case))
        close(ours.tokens["image"].x, tokens, 1e-4, measured="tokens, full depth")
        made_of = ours.logits["classes"] if case.reference.num_classes else ours.embedding["image"]
        close(made_of, case.reference.forward_head(tokens), 1e-4, measured="outputs, full depth")
