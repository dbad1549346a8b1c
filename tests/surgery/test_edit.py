"""Edited bundles: what stays is as it was to the bit, what is resized is as timm does it, what cannot be is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import TRANSFORMS, save_dual, trimodal_model
from safetensors.torch import load_file, save
from timm.layers import resample_abs_pos_embed
from tiny import COLOURS, SIDE, tiny_model
from torch import Tensor

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.bias import RelativeGridPositionSpec
from mmformer.nn.position import LearnedPositionSpec, PositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.surgery.edit import Edited, EditSpec, edit, edit_bundle
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.types import Audio, Batch

POSITION = "stacks.image.position.weight"


def drawn(spec: ModelSpec) -> Model:
    model = spec.build()
    model.initialise(0)
    return model.eval()


def seeing(position: PositionSpec, patch: int = 8, **encoder: Any) -> Model:
    """Of pictures alone."""
    dual = tiny_model()
    stack = dataclasses.replace(dual.stacks["image"], position=position)
    image = EncoderSpec(ImagePatchesSpec(patch=patch), "image", **encoder)
    return drawn(ModelSpec({"image": stack}, {"image": image}))


def for_size(*size: int) -> Transforms:
    return Transforms(ImageTransformSpec((size[0], size[-1])))


def pictures(*size: int) -> Batch:
    pixels = torch.randint(
        0, 256, (3, 3, size[0], size[-1]), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return Batch(("a", "b", "c"), {}, pixels)


def same(edited: Edited, model: Model, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """All but some parameters are those of a model, and the report says so."""
    state, before = edited.model.state_dict(), model.state_dict()
    assert {name for name in state if name not in but} == set(edited.report.copied)
    assert all(torch.equal(state[name], before[name]) for name in edited.report.copied)
    assert set(edited.report.remade) == but


@pytest.mark.parametrize("special", [0, 1, 3])
def test_another_picture_size_resizes_learned_positions(special: int) -> None:
    model = seeing(LearnedPositionSpec((1, 2), (2, 3), special=special), class_token=True, registers=2)
    edited = edit(model, for_size(16, 24), EditSpec(image_size=(40, 32)))
    assert edited.transforms.image == ImageTransformSpec((40, 32))
    same(edited, model, {POSITION})
    table = model.state_dict()[POSITION]
    expected = resample_abs_pos_embed(table[None], [5, 4], [2, 3], num_prefix_tokens=special)[0]
    torch.testing.assert_close(edited.model.state_dict()[POSITION], expected, atol=1e-6, rtol=1e-5)
    assert edited.model(pictures(40, 32)).embedding["image"].shape == (3, 16)
    assert edited.report.remade == {POSITION: "from 2×3 to 5×4 places"}


def test_positions_by_offset_are_resized_too() -> None:
    model = seeing(RelativeGridPositionSpec((1, 2), (2, 2)))
    edited = edit(model, for_size(16), EditSpec(image_size=(32, 32)))
    same(edited, model, {POSITION})
    grid = model.state_dict()[POSITION][:-3]
    expected = resample_abs_pos_embed(grid[None], [7, 7], [3, 3], num_prefix_tokens=0)[0]
    torch.testing.assert_close(edited.model.state_dict()[POSITION][:-3], expected, atol=1e-6, rtol=1e-5)


def test_what_a_table_learned_for_another_size_comes_to_is_kept() -> None:
    """A table that each pass resizes is resized once, from what was learned."""
    model = seeing(LearnedPositionSpec((1, 2), (2, 2), learned=(4, 4)))
    edited = edit(model, for_size(16), EditSpec(image_size=(32, 32)))
    assert edited.model.spec.stacks["image"].position == LearnedPositionSpec((1, 2), (4, 4), learned=(4, 4))
    assert torch.equal(edited.model.state_dict()[POSITION], model.state_dict()[POSITION])


def test_waves_need_no_resizing() -> None:
    model = drawn(tiny_model())
    edited = edit(model, for_size(SIDE), EditSpec(image_size=(32, 32)))
    same(edited, model)
    batch = pictures(SIDE)
    assert torch.equal(edited.model(batch).embedding["image"], model(batch).embedding["image"])


def test_what_is_cut_out_of_a_resized_picture_stays_its_share() -> None:
    transforms = Transforms(ImageTransformSpec((16, 16), "crop", resize=(20, 20)))
    edited = edit(drawn(tiny_model()), transforms, EditSpec(image_size=(32, 48)))
    assert edited.transforms.image == ImageTransformSpec((32, 48), "crop", resize=(40, 60))


@pytest.mark.parametrize(("patch", "places"), [(4, 4), (16, 1)])
def test_another_patch_resizes_projection_and_positions(patch: int, places: int) -> None:
    model = seeing(LearnedPositionSpec((1, 2), (2, 2)))
    edited = edit(model, for_size(16), EditSpec(patch=patch))
    weight = "encoders.image.tokenizer.projection.weight"
    same(edited, model, {POSITION, weight})
    assert edited.model.spec.stacks["image"].position == LearnedPositionSpec((1, 2), (places, places))
    assert edited.report.remade[weight] == f"patches from 8×8 to {patch}×{patch}"


def test_larger_patches_of_larger_pictures_are_read_as_before() -> None:
    """As many tokens stand where they stood, so that a picture of one colour in each patch has the same embedding."""
    model = seeing(LearnedPositionSpec((1, 2), (2, 2)))
    edited = edit(model, for_size(16), EditSpec(image_size=(32, 32), patch=16))
    same(edited, model, {"encoders.image.tokenizer.projection.weight"})
    colours = pictures(2).image
    assert colours is not None

    def flat(side: int) -> Tensor:
        spread = colours.repeat_interleave(side, 2).repeat_interleave(side, 3)
        embedding: Tensor = edited.model.eval()(Batch(("a", "b", "c"), {}, spread)).embedding["image"]
        return embedding if side == 16 else model(Batch(("a", "b", "c"), {}, spread)).embedding["image"]

    torch.testing.assert_close(flat(16), flat(8), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- sounds

SOUND = SpectrogramPatchesSpec(rate=8000, window=256, hop=128, bands=16, patch=(4, 8))


def hearing(places: int, tokenizer: SpectrogramPatchesSpec = SOUND) -> Model:
    stack = StackSpec(16, 1, tiny_model().stacks["text"].layer, LearnedPositionSpec((0, 1), (places, 2)))
    return drawn(ModelSpec({"sound": stack}, {"sound": EncoderSpec(tokenizer, "sound")}))


def test_longer_sounds_resize_positions_over_time() -> None:
    transforms = Transforms(audio=AudioTransformSpec(8000, seconds=0.5))
    model = hearing(8)
    edited = edit(model, transforms, EditSpec(audio_seconds=1.0))
    assert edited.transforms.audio == AudioTransformSpec(8000, seconds=1.0)
    key = "stacks.sound.position.weight"
    same(edited, model, {key})
    expected = resample_abs_pos_embed(model.state_dict()[key][None], [16, 2], [8, 2])[0]
    torch.testing.assert_close(edited.model.state_dict()[key], expected, atol=1e-6, rtol=1e-5)
    audio = Audio(torch.randn(1, 8000), torch.tensor([8000]), 8000)
    assert edited.model(Batch(("a",), {}, audio=audio)).embedding["sound"].shape == (1, 16)


def test_spectra_of_a_fixed_number_of_frames_have_more_of_them() -> None:
    transforms = Transforms(audio=AudioTransformSpec(8000, seconds=0.528))
    edited = edit(hearing(8, dataclasses.replace(SOUND, frames=32)), transforms, EditSpec(audio_seconds=1.04))
    tokenizer = edited.model.spec.encoders["sound"].tokenizer
    assert isinstance(tokenizer, SpectrogramPatchesSpec)
    assert tokenizer.frames == 64
    assert edited.model.spec.stacks["sound"].position.limits == {0: 16, 1: 2}


# ------------------------------------------------------------------------------------------------- parts


def test_a_tower_that_is_dropped_takes_its_stack_along() -> None:
    model = drawn(tiny_model(classes=len(COLOURS), caption=True))
    edited = edit(model, TRANSFORMS, EditSpec(drop=("encoders.text", "decoders.caption", "heads.contrastive")))
    assert list(edited.model.spec.stacks) == ["image"]
    assert list(edited.model.spec.heads) == ["colour"]
    assert edited.transforms == TRANSFORMS
    same(edited, model)
    batch = pictures(SIDE)
    assert torch.equal(edited.model(batch).logits["colour"], model(batch).logits["colour"])
    assert edited.report.lines() == [
        f"copied   {len(edited.report.copied)} parameters as they are",
        *("dropped  stacks.text.*", "dropped  stacks.caption.*", "dropped  encoders.text.*"),
        *("dropped  decoders.caption.tokenizer.weight", "dropped  heads.contrastive.log_scale"),
    ]


def test_a_stack_that_is_still_named_stays() -> None:
    model = drawn(trimodal_model())
    edited = edit(model, Transforms(TRANSFORMS.image, AudioTransformSpec(8000)), EditSpec(drop=("encoders.text",)))
    assert edited.model.spec.stacks.keys() == model.spec.stacks.keys()
    dropped = edit(
        model,
        Transforms(TRANSFORMS.image, AudioTransformSpec(8000)),
        EditSpec(drop=("encoders.sound", "decoders.hear")),
    )
    assert dropped.transforms.audio is None, "nothing hears any more"


def test_a_bundle_is_read_changed_and_written(tmp_path: Path) -> None:
    bundle = save_dual(tmp_path / "old")
    report = edit_bundle(bundle, tmp_path / "new", EditSpec(drop=("heads.colour",), image_size=(32, 32)))
    _, transforms = load_bundle(tmp_path / "new")
    assert transforms == Transforms(ImageTransformSpec((32, 32)))
    before, after = mmformer.load(bundle), mmformer.load(tmp_path / "new")
    torch.testing.assert_close(before.embed(text=["red"]), after.embed(text=["red"]), atol=1e-6, rtol=1e-6)
    card = (tmp_path / "new" / "README.md").read_text()
    assert card.startswith("# A tiny model\n\n## Edited\n")
    assert all(line in card for line in report.lines())


def test_weights_that_are_not_read_are_dropped_for_rows_alone(tmp_path: Path) -> None:
    """A width may be as much as a patch has: DINOv2's token for masks has 768, and so have patches of 16."""
    model, unread = seeing(LearnedPositionSpec((1, 2), (2, 2))), {"mask_token": torch.ones(1, 3 * 8 * 8)}
    files = {"origin/unread.safetensors": save(unread | {"places": torch.ones(5, 16)})}
    save_bundle(tmp_path / "old", model, for_size(16), "", files)
    assert edit_bundle(tmp_path / "old", tmp_path / "new", EditSpec(patch=4)).beside == ["places"]
    assert load_file(tmp_path / "new/origin/unread.safetensors").keys() == {"mask_token"}


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            EditSpec(drop=("heads.color",)),
            r"--drop: the model has no heads\.color, but .* Did you mean 'heads\.colour'",
        ),
        (EditSpec(drop=("encoders.image",)), r"model\.heads\.colour is 'image', but the encoders are text"),
        (EditSpec(audio_seconds=1.0), r"--audio-seconds is of sounds, but no encoder of the model reads them"),
        (EditSpec(image_size=(20, 16)), r"which do not divide an image of 20x16: resize to"),
        (EditSpec(image_size=(16, 0)), r"ImageTransformSpec\.size must be at least 1 pixel"),
    ],
)
def test_what_cannot_be_is_refused(spec: EditSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit(drawn(tiny_model(classes=len(COLOURS))), TRANSFORMS, spec)


def test_pictures_are_asked_of_what_reads_them() -> None:
    deaf = Transforms(audio=AudioTransformSpec(8000, seconds=0.5))
    for spec in (EditSpec(image_size=(16, 16)), EditSpec(patch=4)):
        with pytest.raises(InputError, match="is of pictures, but no encoder of the model reads them"):
            edit(hearing(8), deaf, spec)
    stem = EncoderSpec(ConvolutionalStemSpec(channels=(4, 4)), "image")
    model = drawn(ModelSpec({"image": tiny_model().stacks["image"]}, {"image": stem}))
    with pytest.raises(
        InputError, match=r"of an ImagePatchesSpec, but model\.encoders\.image .* ConvolutionalStemSpec"
    ):
        edit(model, for_size(16), EditSpec(patch=4))


def test_sizes_have_to_be_known() -> None:
    model = seeing(LearnedPositionSpec((1, 2), (2, 2)))
    with pytest.raises(
        InputError, match=r"the bundle does not say how they are prepared \(image of transforms\.yaml is"
    ):
        edit(model, Transforms(), EditSpec(image_size=(32, 32)))
    with pytest.raises(InputError, match=r"The bundle has no transform that says how large its image inputs are"):
        edit(model, Transforms(), EditSpec(patch=4))
    with pytest.raises(
        InputError, match=r"the bundle does not say how they are prepared \(audio of transforms\.yaml is"
    ):
        edit(hearing(8), Transforms(), EditSpec(audio_seconds=2.0))


def test_tables_for_other_sizes_than_are_used_are_not_stretched() -> None:
    model = seeing(LearnedPositionSpec((1, 2), (6, 6)))
    grown = edit(model, for_size(16), EditSpec(image_size=(48, 48)))
    same(grown, model)
    with pytest.raises(InputError, match=r"has 6 places on axis 1, of which the encoder 'image' takes 2, .* take 8"):
        edit(model, for_size(16), EditSpec(image_size=(64, 64)))


def test_encoders_that_share_positions_have_to_agree() -> None:
    model = seeing(LearnedPositionSpec((1, 2), (4, 4)), patch=4)
    other = EncoderSpec(ImagePatchesSpec(patch=8), "image")
    model = drawn(dataclasses.replace(model.spec, encoders={**model.spec.encoders, "other": other}))
    with pytest.raises(
        InputError, match=r"its encoders would change differently: image from \(1, 4, 4\) to \(1, 8, 8\)"
    ):
        edit(model, for_size(16), EditSpec(image_size=(32, 32)))


def test_nothing_to_change_is_refused() -> None:
    with pytest.raises(InputError, match="nothing is to change: name --image-size"):
        EditSpec()
    with pytest.raises(InputError, match=r"EditSpec\.new_rows must be left out without a vocabulary"):
        EditSpec(patch=4, new_rows="random")
    with pytest.raises(InputError, match=r"EditSpec\.patch must be at least 1 pixel"):
        EditSpec(patch=0)
