"""timm's feature maps as tokens: timm's own values at the right places, BatchNorm that mixes nobody, and bundles."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from bundles import TRANSFORMS
from safetensors.torch import save_file
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.image import ImageTokenizer
from mmformer.tokenizers.timm_features import TimmFeaturesSpec
from mmformer.types import Patches, Tokens

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
RESNET = TimmFeaturesSpec(MEAN, STD, "test_resnet", level=-3)
SPECS = [
    RESNET,
    TimmFeaturesSpec(MEAN, STD, "resnet18", level=2),
    TimmFeaturesSpec(MEAN, STD, "convnext_atto", level=1),
    TimmFeaturesSpec(MEAN, STD, "mobilenetv3_small_050", level=1),
    TimmFeaturesSpec(MEAN, STD, "test_efficientnet"),
    TimmFeaturesSpec(MEAN, STD, "test_vit", level=3, image_size=(64, 32)),
    TimmFeaturesSpec(MEAN, STD, "swin_tiny_patch4_window7_224", level=0, image_size=(64, 32)),  # channels last
]


def build(spec: TimmFeaturesSpec, width: int = 10) -> ImageTokenizer:
    """With running statistics that are not those of nothing, and blocks that do something (timm's ResNets begin
    without).
    """
    torch.manual_seed(0)
    module = spec.build(width)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


def pictures(batch: int = 2, height: int = 64, width: int = 32) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)


def model_of(tokenizer: TimmFeaturesSpec) -> ModelSpec:
    base = tiny_model()
    encoder = dataclasses.replace(base.encoders["image"], tokenizer=tokenizer)
    return ModelSpec({"image": base.stacks["image"]}, {"image": encoder})


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_tokens_are_timms_feature_map(spec: TimmFeaturesSpec) -> None:
    module, image = build(spec), pictures()
    size = {} if spec.image_size is None else {"img_size": spec.image_size}
    peer = timm.create_model(spec.name, num_classes=0, **size).eval()
    level = spec.level % len(peer.feature_info)
    peer.load_state_dict(module.trunk.features.model.state_dict(), strict=False)
    x = (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        found = peer.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")[level]
        tokens: Tokens = module(image)
    stride = spec.stride
    rows, columns = 64 // stride, 32 // stride
    assert tokens.pos.tolist() == [[[0, row, column] for row in range(rows) for column in range(columns)]] * 2
    assert found.shape[2:] == (rows, columns)
    found = found.permute(0, 2, 3, 1)
    expected = found.flatten(1, 2) @ module.projection.weight.T + module.projection.bias
    torch.testing.assert_close(tokens.x, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [RESNET, SPECS[3], SPECS[4]], ids=lambda spec: spec.name)
def test_batch_norm_never_mixes(spec: TimmFeaturesSpec) -> None:
    """In training too, a picture's tokens are its own, and the running statistics stay."""
    module, image = build(spec).train(), pictures(4)
    before = {name: value.clone() for name, value in module.named_buffers()}
    assert before
    together = module(image).x
    for index in range(4):
        torch.testing.assert_close(module(image[index : index + 1]).x[0], together[index], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    assert module.trunk.features.training
    assert not any(part.training for part in module.modules() if isinstance(part, _BatchNorm))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_parameter_gets_a_gradient(spec: TimmFeaturesSpec) -> None:
    module = build(spec).train()
    x = module(pictures()).x
    (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_first_weights_are_timms_and_the_seeds(name: str) -> None:
    spec = model_of(TimmFeaturesSpec(name=name))
    with torch.device("meta"):
        model = spec.build()
    model.to_empty(device="cpu")
    models = [model, spec.build(), spec.build()]
    for each, seed in zip(models, (3, 3, 4), strict=True):
        each.initialise(seed)
    states = [each.state_dict() for each in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items() if ".trunk." in key)
    torch.manual_seed(9)
    timms = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(-1,)).state_dict()
    for key, value in timms.items():
        ours = states[0][f"encoders.image.tokenizer.trunk.features.{key}"]
        assert ours.shape == value.shape
        if value.is_floating_point() and value.numel() > 500:
            torch.testing.assert_close(ours.std(), value.std(), rtol=0.25, atol=1e-6)
        elif value.unique().numel() == 1:
            assert torch.equal(ours, value), key


@pytest.mark.parametrize("spec", [RESNET, SPECS[6]], ids=lambda spec: spec.name)
def test_a_bundle_gives_back_the_same_tokens(spec: TimmFeaturesSpec, tmp_path: Path) -> None:
    """Running statistics, and tables that timm itself does not save, are in it."""
    model = model_of(spec).build()
    model.initialise(1)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.3)
    save_bundle(tmp_path / "bundle", model, Transforms(TRANSFORMS.image), "card")
    opened = load_bundle(tmp_path / "bundle")[0]
    assert opened.spec == model.spec
    batch = tiny_batch(["a", "b"], side=(64, 32))._replace(text=None)
    with torch.no_grad():
        expected, found = model.eval()(batch).embedding["image"], opened(batch).embedding["image"]
    assert torch.equal(expected, found)


def test_weights_from_a_file(tmp_path: Path) -> None:
    """Those of timm's whole model, whose classifier is left alone."""
    torch.manual_seed(7)
    whole = timm.create_model("test_convnext").eval()
    file = tmp_path / "whole.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, file)
    model = model_of(TimmFeaturesSpec(name="test_convnext", weights=str(file))).build()
    model.initialise(0)
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = whole.stages(whole.stem(x))
        found = model.encoders["image"].eval().tokenizer.trunk(x)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(file: Path, message: str) -> None:
        model = model_of(TimmFeaturesSpec(name="test_convnext", weights=str(file))).build()
        with pytest.raises(InputError, match=re.escape(message)):
            model.initialise(0)

    refused(tmp_path / "none.safetensors", "none.safetensors: there is no such file: name a safetensors file of timm's")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    refused(tmp_path / "bad.safetensors", "it cannot be read as safetensors")
    state = timm.create_model("test_convnext").state_dict()
    save_file({**state, "stem.0.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    refused(
        tmp_path / "shape.safetensors", "timm's 'test_convnext' has stem.0.bias, (24,), but the file has it as (3,)"
    )
    del state["stem.0.bias"]
    save_file(state, tmp_path / "less.safetensors")
    refused(tmp_path / "less.safetensors", "has stem.0.bias, (24,), but the file lacks it.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet81"},
            "name is 'resnet81', but timm .* no architecture of that name.* mean 'resnet18'",
        ),
        ({"name": "resnet18.a1_in1k"}, "name is .* leave out what stands after a dot"),
        ({"name": "hf-hub:timm/resnet18"}, "name is .* no architecture of that name"),
        ({"level": 5}, "level is 5, but timm makes no such feature map of 'resnet18'"),
        ({"level": -6}, "level is -6, but timm makes no such feature map of 'resnet18'"),
        ({"image_size": (64, 64)}, r"image_size is \(64, 64\), but 'resnet18' is made for no size in particular"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive on each channel"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^TimmFeaturesSpec.{message}"):
        TimmFeaturesSpec(**options)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"TimmFeaturesSpec makes a token of every 8x8 pixels.* 60x32: resize to 64x32"
    ):
        build(RESNET)(pictures(height=60))
    fixed = TimmFeaturesSpec(name="swin_tiny_patch4_window7_224", level=0, image_size=(64, 64))
    with pytest.raises(InputError, match=r"window7_224', which refuses pictures of 64x32: .* image_size to \(64, 32\)"):
        build(fixed)(pictures())
    with pytest.raises(InputError, match="TimmFeaturesSpec reads whole pictures of one size"):
        build(RESNET)(Patches(torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 2, dtype=torch.int64)))


CHANGES: list[dict[str, Any]] = [
    {"mean": (0.2, 0.4, 0.7)},
    {"std": (0.3, 0.3, 0.5)},
    {"name": "resnet18"},
    {"level": 0},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_field_changes_the_tokens(change: dict[str, Any]) -> None:
    one, other = build(RESNET)(pictures()).x, build(dataclasses.replace(RESNET, **change))(pictures()).x
    assert one.shape != other.shape or not torch.allclose(one, other)
