"""Pictures are made as transformers, open_clip and timm make them, to the pixel, and what says so goes both ways."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mmformer.data.manifest import Manifest
from mmformer.data.picture import read_picture
from mmformer.data.shards import ShardReader
from mmformer.interop.pictures import PictureReading, folder_pictures, picture_config, picture_transform
from mmformer.tokenizers.image import ImagePatchesSpec

KERNELS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
SIZES = [(1, 40), (40, 1), (3, 3), (28, 28), (32, 32), (33, 47), (47, 33), (31, 200), (200, 31), (241, 320), (61, 45)]
HALF, CLIP = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)


def drawn() -> list[Image.Image]:
    """Noise of all sizes, and drawings, all of them RGB."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    emoji = ShardReader(Manifest.load(Path(__file__).parents[2] / "data" / "emoji"), "test")
    drawings = [Image.open(io.BytesIO(emoji[position].members["png"])) for position in (0, 20)]
    wide = Image.new("RGB", (90, 61), (250, 120, 10))
    for place, drawing in enumerate(drawings):
        wide.paste(drawing.convert("RGB"), (place * 40, 10 * place))
    return [*(Image.fromarray(pixels) for pixels in noise), *(each.convert("RGB") for each in drawings), wide]


PICTURES = drawn()


def in_modes() -> list[Image.Image]:
    """One picture in all the ways that Pillow may hold it, transparent ones among them."""
    picture = PICTURES[9].resize((47, 37))
    alpha = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 47), dtype=np.uint8))
    layered = picture.copy()
    layered.putalpha(alpha)
    indexed = picture.quantize(16)
    holed = indexed.copy()
    holed.info["transparency"] = 3
    grey = picture.convert("L")
    both = Image.merge("LA", (grey, alpha))
    return [grey, both, layered, indexed, holed, picture.convert("1"), picture.convert("CMYK")]


def ours(reading: PictureReading, picture: Image.Image) -> NDArray[np.uint8]:
    made = reading.transform(read_picture(picture, "a", reading.transform.transparency))
    return np.asarray(made)


def normalised(reading: PictureReading, picture: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(ours(reading, picture)).permute(2, 0, 1)[None]
    return ImagePatchesSpec(mean=reading.mean, std=reading.std, patch=1).build(4).normalise(pixels)[0]


def theirs(processor: Any, picture: Image.Image) -> NDArray[np.uint8]:
    """A transformers processor's pixels, H W 3."""
    made = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert made.dtype == np.uint8
    return np.asarray(made.transpose(1, 2, 0))


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "clip_old": ("CLIPImageProcessor", {"size": 31, "crop_size": 28}),
    "clip_wide": ("CLIPImageProcessor", {"size": 33, "crop_size": {"height": 20, "width": 31}}),
    "clip_squashed": ("CLIPImageProcessor", {"size": {"height": 30, "width": 20}, "do_center_crop": False}),
    "clip_default": ("CLIPImageProcessor", {}),
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 24}}),
    "vit_old": ("ViTImageProcessor", {"size": 32}),
    "deit": ("DeiTImageProcessor", {"size": {"height": 37, "width": 37}, "crop_size": {"height": 32, "width": 32}}),
    "deit_default": ("DeiTImageProcessor", {}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
    "blip": ("BlipImageProcessor", {"size": {"height": 48, "width": 48}}),
    "llava": (
        "LlavaImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_pad": True},
    ),
    "llava_cut": ("LlavaImageProcessor", {"size": 36, "crop_size": 29, "do_pad": True}),
    "llava_whole": ("LlavaImageProcessor", {"size": {"height": 30, "width": 34}, "crop_size": 30}),
}


@pytest.mark.parametrize("suffix", ["", "Pil"])
@pytest.mark.parametrize("resample", sorted(KERNELS))
@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_transformers_processors(case: str, resample: int, suffix: str) -> None:
    transformers = pytest.importorskip("transformers")
    name, config = CONFIGS[case]
    config = {**config, "resample": resample}
    processor = getattr(transformers, name + ("Pil" if resample == 1 else suffix))(**config)
    reading = picture_transform({**config, "image_processor_type": name + suffix}, "preprocessor_config.json")
    assert reading.transform.interpolation == KERNELS[resample]
    assert reading.transform.resampler == ("pillow" if suffix or resample == 1 else "torch")
    for picture in PICTURES[8:] if "default" in case else PICTURES:
        np.testing.assert_array_equal(ours(reading, picture), theirs(processor, picture), str(picture.size))


@pytest.mark.parametrize("suffix", ["", "Pil"])
@pytest.mark.parametrize("name", ["CLIP", "Bit", "Siglip", "Blip", "Llava"])
def test_transformers_processors_convert(name: str, suffix: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{name}ImageProcessor{suffix}")(size={"height": 24, "width": 20}, crop_size=20)
    reading = picture_transform(
        {"image_processor_type": f"{name}ImageProcessor{suffix}", "size": [24, 20], "crop_size": 20}, "a"
    )
    for picture in in_modes():
        np.testing.assert_array_equal(ours(reading, picture), theirs(processor, picture), picture.mode)


def test_sixteen_bits_are_scaled_where_pillow_cuts_them_off() -> None:
    """The one way of holding a picture in which we differ from transformers, which gets 255 for all above it."""
    deep = np.linspace(0, 65535, 20 * 24).reshape(20, 24).astype(np.uint16)
    reading = picture_transform({"image_processor_type": "SiglipImageProcessorPil", "size": [20, 24]}, "a")
    shallow = Image.fromarray((deep / 65535 * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(ours(reading, Image.fromarray(deep)), np.asarray(shallow.convert("RGB")))
    transformers = pytest.importorskip("transformers")
    cut = theirs(transformers.SiglipImageProcessorPil(size={"height": 20, "width": 24}), Image.fromarray(deep))
    np.testing.assert_array_equal(cut[..., 0], deep.clip(0, 255))


@pytest.mark.parametrize("suffix", ["", "Pil"])
@pytest.mark.parametrize("case", ["clip", "vit", "deit", "llava"])
def test_transformers_normalise(case: str, suffix: str) -> None:
    transformers = pytest.importorskip("transformers")
    name, config = CONFIGS[case]
    processor = getattr(transformers, name + suffix)(**config)
    reading = picture_transform({**config, "image_processor_type": name + suffix}, "a")
    for picture in PICTURES[-4:]:
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(normalised(reading, picture), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("side", [24, 100])
def test_the_two_backends_of_transformers_differ_by_little(side: int, resample: int) -> None:
    """And hence what a file may mean that does not say which: a unit or two on a few pixels of a drawing."""
    said = {"size": {"height": side, "width": side}, "resample": resample}
    by_torch, by_pillow = (
        picture_transform({**said, "image_processor_type": f"ViTImageProcessor{suffix}"}, "a") for suffix in ("", "Pil")
    )
    assert by_torch != by_pillow
    for picture in PICTURES[-3:]:
        apart = np.abs(ours(by_torch, picture).astype(int) - ours(by_pillow, picture))
        assert apart.max() <= 2 and (apart > 0).mean() < 0.03


@pytest.mark.parametrize("case", sorted(CONFIGS))
@pytest.mark.parametrize("suffix", ["", "Pil"])
def test_transformers_opens_what_is_written(case: str, suffix: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name, config = CONFIGS[case]
    reading = picture_transform({**config, "image_processor_type": name + suffix, "resample": 2}, "a")
    written = picture_config(name, reading)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert folder_pictures(tmp_path) == reading
    opener = getattr(transformers, name + "Pil") if suffix else transformers.AutoImageProcessor
    processor = opener.from_pretrained(tmp_path)
    assert type(processor).__name__ == name + suffix
    for picture in PICTURES[-3:]:
        np.testing.assert_array_equal(ours(reading, picture), theirs(processor, picture))
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(normalised(reading, picture), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["CLIP", "ViT", "DeiT", "Bit", "Siglip", "Blip", "Llava"])
def test_what_transformers_writes_is_read(name: str, tmp_path: Path) -> None:
    """With nothing left out: its own defaults are ours, and both places of the file are known."""
    transformers = pytest.importorskip("transformers")
    kind = f"{name}ImageProcessor"
    defaults = picture_transform({"image_processor_type": kind}, "a")
    processor = getattr(transformers, kind)()
    processor.save_pretrained(tmp_path)
    assert folder_pictures(tmp_path) == defaults
    flat = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert picture_transform({"image_processor": flat, "processor_class": "AProcessor"}, "a") == defaults
    assert picture_transform({**flat, "image_processor_type": f"{kind}Fast"}, "a") == defaults
    old = {**flat, "image_processor_type": None, "feature_extractor_type": f"{name}FeatureExtractor"}
    assert picture_transform(old, "a") == defaults
    del flat["image_processor_type"]
    assert picture_transform(flat, "a", kind) == defaults


def test_a_processor_inside_another_is_what_transformers_opens(tmp_path: Path) -> None:
    """As version 5 writes it, and preferred to the older file beside it."""
    transformers = pytest.importorskip("transformers")
    name, config = CONFIGS["clip_wide"]
    whole = {"image_processor": {**config, "image_processor_type": name}, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    reading, processor = folder_pictures(tmp_path), transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert reading is not None
    assert reading.transform.size == (20, 31)
    for picture in PICTURES[-3:]:
        np.testing.assert_array_equal(ours(reading, picture), theirs(processor, picture))


@pytest.mark.parametrize("model", ["vit", "clip", "dinov2", "deit", "siglip", "blip", "llava", "vit_mae"])
def test_a_processor_without_a_name_is_that_of_its_model(model: str, tmp_path: Path) -> None:
    """As older files are: ``{"size": 224, …}``, beside the model's config."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "image_std": HALF}))
    reading, processor = folder_pictures(tmp_path), transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert reading is not None
    np.testing.assert_array_equal(ours(reading, PICTURES[5]), theirs(processor, PICTURES[5]))
    assert (reading.mean, reading.std) == (tuple(processor.image_mean), HALF)


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "default": {},
    "shortest": {"size": 32, "resize_mode": "shortest"},
    "bilinear": {"size": [33, 33], "resize_mode": "shortest", "interpolation": "bilinear", "mean": HALF, "std": HALF},
    "not_square": {"size": [24, 32], "resize_mode": "shortest", "interpolation": "bilinear"},
    "longest": {"size": 32, "resize_mode": "longest", "fill_color": 128},
    "longest_not_square": {"size": [24, 31], "resize_mode": "longest"},
    "squash": {"size": [24, 32], "resize_mode": "squash", "interpolation": "bilinear"},
    "random": {"size": 32, "interpolation": "random"},
}


@pytest.mark.parametrize("case", sorted(OPEN_CLIP))
def test_open_clip(case: str, tmp_path: Path) -> None:
    transform = pytest.importorskip("open_clip.transform")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": OPEN_CLIP[case]}))
    reading = folder_pictures(tmp_path)
    assert reading is not None
    written = picture_config("open_clip", reading)
    assert picture_transform(json.loads(json.dumps(written)), "a") == reading
    for config in (OPEN_CLIP[case], written):
        steps = transform.image_transform_v2(transform.PreprocessCfg(**config), is_train=False)
        resize = type(steps)(steps.transforms[:-2])  # before bytes become numbers
        for picture in PICTURES[8:] if case == "default" else PICTURES:
            if case.startswith("longest") and min(picture.size) * 31 < max(picture.size):
                continue  # open_clip asks Pillow for a side of 0, which it refuses
            np.testing.assert_array_equal(ours(reading, picture), np.asarray(resize(picture)), str(picture.size))
            torch.testing.assert_close(normalised(reading, picture), steps(picture), rtol=0, atol=1e-6)


TIMM: dict[str, dict[str, Any]] = {
    "default": {"architecture": "vit_base_patch16_224", "num_classes": 1000, "pool_size": None},
    **{
        f"crop_{share}": {"input_size": [3, 32, 32], "crop_pct": share, "interpolation": kernel}
        for share, kernel in ((0.875, "bicubic"), (0.9, "bilinear"), (0.95, "lanczos"), (1.0, "nearest"))
    },
    "not_square": {"input_size": [3, 24, 31], "crop_pct": 0.9, "mean": HALF, "std": HALF},
    "squash": {"input_size": [3, 24, 31], "crop_pct": 1.0, "crop_mode": "squash", "fixed_input_size": True},
    "squash_cut": {"input_size": [3, 24, 31], "crop_pct": 0.8, "crop_mode": "squash"},
    "border": {"input_size": [3, 32, 32], "crop_pct": 1.0, "crop_mode": "border", "mean": CLIP},
    "border_cut": {"input_size": [3, 31, 24], "crop_pct": 0.9, "crop_mode": "border", "test_crop_pct": 1.0},
}


@pytest.mark.parametrize("case", sorted(TIMM))
def test_timm(case: str) -> None:
    """With its own resolution of what a config leaves out."""
    data = pytest.importorskip("timm.data")
    reading = picture_transform({"architecture": "a", "pretrained_cfg": TIMM[case]}, "config.json", "timm")
    written = picture_config("timm", reading)
    assert picture_transform(json.loads(json.dumps(written)), "a") == reading
    assert written["crop_pct"] == TIMM[case].get("crop_pct", 0.875)
    for config in (TIMM[case], written):
        settings = data.resolve_data_config(pretrained_cfg=config)
        pixels, numbers = (data.create_transform(**settings, normalize=normal) for normal in (False, True))
        for picture in PICTURES[8:] if case == "default" else PICTURES:
            if case.startswith("border") and min(picture.size) * 24 < max(picture.size):
                continue  # timm asks Pillow for a side of 0, which it refuses
            expected = pixels(picture).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(ours(reading, picture), expected, str(picture.size))
            torch.testing.assert_close(normalised(reading, picture), numbers(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_open_clip_and_timm_see_the_hidden_colours(library: str) -> None:
    """As Pillow's ``convert("RGB")`` has them, which timm's data sets and open_clip's loaders begin with."""
    said = {"size": 24, "resize_mode": "squash"} if library == "open_clip" else {"crop_mode": "squash"}
    reading = picture_transform(said, "a", library)
    for picture in in_modes():
        np.testing.assert_array_equal(ours(reading, picture), ours(reading, picture.convert("RGB")), picture.mode)


def test_pictures_that_are_not_normalised() -> None:
    reading = picture_transform({"image_processor_type": "CLIPImageProcessor", "do_normalize": False}, "a")
    assert (reading.mean, reading.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert picture_transform(picture_config("CLIPImageProcessor", reading), "a") == reading


def test_a_folder_without_any_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert folder_pictures(tmp_path) is None
