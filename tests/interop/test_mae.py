"""Masked autoencoders: the way in, the numbers of transformers' own for one draw of patches, the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Frame
from parity import (
    DEEP,
    Case,
    check_gradients,
    check_refused,
    check_round_trip,
    check_same,
    close,
    imported,
    otherwise,
    saved,
    weights_of,
)
from torch import Tensor

from mmformer.interop.exporting import export_model
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
    **{"decoder_hidden_size": 24, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2},
    **{"decoder_intermediate_size": 28, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-3},
}
MEAN, STD = [0.48, 0.46, 0.4], [0.27, 0.26, 0.28]
DRAWN = torch.Generator().manual_seed(1)
PICTURES = torch.randint(0, 256, (3, 3, 32, 32), generator=DRAWN).to(torch.uint8)
NOISE = torch.rand(3, 16, generator=DRAWN)
SEEN = NOISE.argsort(1)[:, :4]
"""The reference keeps a quarter, in the order of its noise."""


def normalised() -> Tensor:
    """As a processor makes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (PICTURES / 255 - mean) / std


def ours_of(model: Model, seen: Tensor | None = SEEN) -> Outputs:
    found: Outputs = model(Batch((), {}, image=PICTURES, seen=seen))
    return found


def mae(folder: Path, kind: str = "ViTMAEForPreTraining", **change: Any) -> Case:
    how = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}
    transformers.ViTImageProcessor(**how).save_pretrained(folder)
    return saved(getattr(transformers, kind)(transformers.ViTMAEConfig(**{**SIZES, **change})), folder)


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "normalised"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return mae(tmp_path_factory.mktemp("mae"), norm_pix_loss=request.param)


class TestMAE(Frame):
    measured = "pixels"

    def ours(self, model: Model) -> Tensor:
        return ours_of(model).logits["pixels"]

    def theirs(self, case: Case) -> Tensor:
        logits: Tensor = case.reference(normalised(), noise=NOISE).logits
        return logits


def test_tokens_and_the_loss(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = ours_of(model), case.reference(normalised(), noise=NOISE)
        encoded = case.reference.vit(normalised(), noise=NOISE).last_hidden_state
    close(ours.tokens["image"].x, encoded, measured="tokens")
    loss = ours.losses["pixels"]
    close((loss.total / loss.items)[None], theirs.loss[None], varied=False, measured="loss")
    assert int(loss.items) == 3 * 12 == int(theirs.mask.sum())


def test_the_order_in_which_patches_are_seen_is_nothing(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        one, two = ours_of(model), ours_of(model, SEEN.sort(1).values)
    close(one.logits["pixels"], two.logits["pixels"])
    assert not torch.equal(one.tokens["image"].pos, two.tokens["image"].pos)


def test_gradients_of_the_loss(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    theirs, loss = case.reference.train()(normalised(), noise=NOISE), ours_of(model).losses["pixels"]
    check_gradients((loss.total / loss.items)[None], model, theirs.loss[None], case)
    case.reference.eval()


def test_positions_do_not_train(case: Case, tmp_path: Path) -> None:
    """As theirs do not; what a file has of them is kept."""
    model = imported(case, tmp_path / "bundle").model
    still = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert still == {"stacks.image.position.weight", "stacks.pixels.position.weight"}
    assert torch.equal(model.stacks["image"].position.weight, case.reference.vit.embeddings.position_embeddings[0])


def test_names_of_published_weights(case: Case, tmp_path: Path) -> None:
    """transformers 4 called the decoder's layers otherwise, and the files that were published are its."""
    state = weights_of(case.folder)
    older = {name.replace("decoder_encoder.layer", "decoder_layers"): value for name, value in state.items()}
    assert older.keys() != state.keys()
    published = otherwise(case, tmp_path, older, "preprocessor_config.json")
    model = imported(published, tmp_path / "bundle").model
    with torch.no_grad():
        close(ours_of(model).logits["pixels"], case.reference(normalised(), noise=NOISE).logits, measured="pixels")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    check_same(weights_of(tmp_path / "out"), older)
    opened = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, opened[name]) for name, value in case.reference.state_dict().items())


def test_the_encoder_alone(tmp_path: Path) -> None:
    """Its class sees a quarter, too, unless its ratio is 0; ours sees all where no batch says otherwise."""
    case = mae(tmp_path / "in", "ViTMAEModel", mask_ratio=0.0, hidden_act="gelu_new")
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours = ours_of(model, None).tokens["image"].x
        close(ours, case.reference(normalised(), noise=torch.arange(16.0).expand(3, 16)).last_hidden_state)
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


@pytest.mark.slow
def test_at_full_depth(tmp_path: Path) -> None:
    case = mae(tmp_path / "in", num_hidden_layers=12, decoder_num_hidden_layers=8)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        theirs = case.reference(normalised(), noise=NOISE).logits
        close(ours_of(model).logits["pixels"], theirs, DEEP, measured="pixels, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"image_size": 30},
            "has image_size 30 and patch_size 8, but .* is a square image_size that patch_size divides",
        ),
        ({"num_channels": 1}, "num_channels 1, but .* is 3"),
        ({"decoder_width": 4}, "has decoder_width 4, which mmformer does not know"),
        ({"decoder_hidden_size": 16}, "the file has decoder.*, but the config asks for"),
        ({"decoder_num_hidden_layers": 3}, "missing: decoder.decoder_encoder.layer.2"),
        ({"architectures": ["ViTMAEForImageClassification"]}, "reads ViTMAEForPreTraining"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(case, tmp_path, change, told)
