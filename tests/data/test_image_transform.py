"""What a transform's fields do to a picture, and which of them are refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, write_few

from mmformer.bundle import Transforms
from mmformer.config import parse, to_data
from mmformer.data.dataset import SampleDataset
from mmformer.data.decode import decode, decode_image
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.inputs import ImageInputSpec
from mmformer.data.order import OrderSpec
from mmformer.data.picture import read_picture
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.reader import Reader
from mmformer.tokenizers.image import ImagePatchesSpec

PICTURE = np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8)
TWO_STEPS = ImageTransformSpec((16, 16), "crop", resize=(19, 19))
PADDED = ImageTransformSpec((16, 16), "pad")
SQUASHED = ImageTransformSpec((16, 16), "squash")


@pytest.mark.parametrize(
    ("spec", "change"),
    [
        (TWO_STEPS, {"resize": (20, 20)}),
        (TWO_STEPS, {"resize": None}),
        (TWO_STEPS, {"rounding": "even"}),
        (TWO_STEPS, {"interpolation": "bilinear"}),
        (TWO_STEPS, {"interpolation": "lanczos"}),
        (TWO_STEPS, {"interpolation": "nearest"}),
        (TWO_STEPS, {"resampler": "torch"}),
        (SQUASHED, {"fit": "square"}),
        (SQUASHED, {"resize": (20, 18)}),
        (PADDED, {"fit": "square"}),
        (PADDED, {"resize": (20, 18)}),
        (ImageTransformSpec((16, 16), "square"), {"fill": (1, 2, 3)}),
        (ImageTransformSpec((16, 16), "square"), {"resize": (20, 20)}),
        (ImageTransformSpec((16, 16), "native", patch=4), {"interpolation": "nearest"}),
        (ImageTransformSpec((16, 16), "native", patch=4), {"resampler": "torch"}),
    ],
    ids=str,
)
def test_each_field_changes_the_picture(spec: ImageTransformSpec, change: dict[str, Any]) -> None:
    changed = dataclasses.replace(spec, **change)
    assert spec(PICTURE).shape == changed(PICTURE).shape
    assert (spec(PICTURE) != changed(PICTURE)).any()
    assert parse(ImageTransformSpec, to_data(changed), "a") == changed


def test_transforms_of_older_files_are_read() -> None:
    older = {"size": [16, 16], "fit": "pad", "fill": [255, 255, 255], "patch": None, "enlarge": False}
    assert parse(ImageTransformSpec, older, "transforms.yaml") == PADDED


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "native", "patch": 4, "resize": (16, 16)}, r"resize must be left out where fit is 'native'"),
        ({"fit": "crop", "resize": (16, 15)}, r"resize must be at least the size, \(16, 16\), .* but is \(16, 15\)"),
        ({"fit": "squash", "resize": (16, 16)}, r"resize must be left out where it is the size"),
        ({"fit": "square", "resize": (16, 16)}, r"resize must be left out where it is the size"),
        ({"fit": "crop", "rounding": "even"}, r"rounding must be left alone where resize leaves nothing to cut"),
        ({"fit": "pad", "resize": (16, 16), "rounding": "even"}, r"rounding must be left alone"),
        ({"fit": "squash", "resampler": "torch", "interpolation": "lanczos"}, r"interpolation must be nearest, bili"),
        ({"fit": "crop", "resampler": "torch"}, r"resampler must be 'pillow' where fit is 'crop' without resize"),
        ({"fit": "squash", "interpolation": "cubic"}, r"interpolation must be one of nearest, .* but is 'cubic'"),
        ({"fit": "squash", "fill": (0, 0, 0)}, r"fill must be left alone where fit is 'squash'"),
    ],
)
def test_fields_that_would_change_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"ImageTransformSpec.{message}"):
        ImageTransformSpec((16, 16), **fields)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "nearest"])
def test_by_torch_is_torchvision_on_tensors(kernel: str) -> None:
    from torchvision.transforms.v2 import InterpolationMode, functional

    spec = ImageTransformSpec((20, 24), "squash", interpolation=kernel, resampler="torch")  # type: ignore[arg-type]
    mode = InterpolationMode("nearest-exact" if kernel == "nearest" else kernel)
    theirs = functional.resize(torch.from_numpy(PICTURE).permute(2, 0, 1).contiguous(), [20, 24], mode, antialias=True)
    np.testing.assert_array_equal(spec(PICTURE), theirs.permute(1, 2, 0).numpy())


def test_what_shows_through_a_picture() -> None:
    """On white as transformers lays it, or the hidden colours of Pillow's own conversion."""
    pixels = np.stack(np.broadcast_arrays(np.arange(256), np.arange(256)[:, None], 90, np.arange(256)[::-1]), axis=-1)
    picture = Image.fromarray(pixels.astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    white = Image.alpha_composite(Image.new("RGBA", picture.size, (255,) * 4), picture).convert("RGB")
    hidden = picture.convert("RGB")
    for transparency, expected in (("white", white), ("ignored", hidden)):
        for decoded in (
            decode_image(buffer.getvalue(), "a", transparency=transparency),  # type: ignore[arg-type]
            decode("png", buffer.getvalue(), "a", transparency),  # type: ignore[arg-type]
            read_picture(picture, "a", transparency),  # type: ignore[arg-type]
        ):
            np.testing.assert_array_equal(decoded, np.asarray(expected))


def test_samples_of_a_run_show_it_too(tmp_path: Path) -> None:
    """The loader decodes by the transform's word for it, and so does the reader of what users hand in."""
    pixels = np.concatenate([PICTURE[:16, :16], np.zeros((16, 16, 1), np.uint8)], axis=-1)  # nothing of it shows
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    shards = write_few(tmp_path / "shards", 1, png=[buffer.getvalue()])
    found = {}
    for transparency in ("white", "ignored"):
        transform = ImageTransformSpec((16, 16), transparency=transparency)  # type: ignore[arg-type]
        image = ImageInputSpec("png", transform)
        data = DataSpec(str(shards), image=image, batch_size=1)
        found[transparency] = SampleDataset(data, "train", OrderSpec(1, 1), 1, False)[0].image
        reader = Reader(tiny_model(), Transforms(transform), 1)
        [(_, batch)] = reader.batches({"image": [buffer.getvalue()]})
        assert isinstance(batch.image, torch.Tensor)
        np.testing.assert_array_equal(batch.image[0].permute(1, 2, 0).numpy(), found[transparency])
    assert (found["white"] == 255).all()
    np.testing.assert_array_equal(found["ignored"], PICTURE[:16, :16])


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
    ids=["half", "imagenet", "clip"],
)
def test_normalising_is_the_libraries_to_float_rounding(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """(x / 255 - mean) / std, in float64; what it is multiplied with and added to here is made of those."""
    image = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)  # every value of every channel
    tokenizer = ImagePatchesSpec(mean=mean, std=std, patch=1).build(4)  # type: ignore[arg-type]
    three = (1, 3, 1, 1)
    exact = (image.double() / 255 - torch.tensor(mean).double().view(three)) / torch.tensor(std).double().view(three)
    torch.testing.assert_close(tokenizer.normalise(image).double(), exact, rtol=0, atol=1e-6)
