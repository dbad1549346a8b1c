"""What a transform cannot express is refused as it comes in, and what a library cannot say as it goes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError
from mmformer.interop.pictures import PictureReading, picture_config, picture_transform

HALF, CLIP = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)
CLIP_SAID = {"image_processor_type": "CLIPImageProcessor"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"says nothing of pictures that mmformer knows.*It has nothing"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, r"'Siglip2ImageProcessor', .*Did you mean 'SiglipImage"),
        ({**CLIP_SAID, "crop_sise": 3}, r"a has crop_sise 3, which may .*Did you mean 'crop_size'"),
        ({**CLIP_SAID, "do_resize": False}, r"has do_resize False, but .* have do_resize true"),
        ({**CLIP_SAID, "do_rescale": False}, r"has do_rescale False, but .* have do_rescale true"),
        ({**CLIP_SAID, "rescale_factor": 1 / 127.5}, r"has rescale_factor 0.0078.*, but .* have rescale_factor 1/255"),
        ({**CLIP_SAID, "resample": 5}, r"has resample 5, but .* have resample 0 \(nearest\), 1 \(lanczos\)"),
        ({**CLIP_SAID, "size": {"longest_edge": 3}}, r"has size {'longest_edge': 3}, but .* of height and width, or"),
        ({**CLIP_SAID, "do_center_crop": False}, r"has do_center_crop False, but .* true where size has shortest_edge"),
        ({**CLIP_SAID, "crop_size": 300}, r"has crop_size 300, but .* no larger than the size, {'shortest_edge': 224}"),
        ({**CLIP_SAID, "do_pad": True}, r"has do_pad True, but .* have do_pad false, but for LlavaImageProcessor"),
        ({**CLIP_SAID, "image_mean": [0.5]}, r"has image_mean \[0.5\], but .* of three numbers"),
        ({**CLIP_SAID, "data_format": "channels_last"}, r"has data_format 'channels_last'"),
        ({"preprocess_cfg": {"resize_mode": "longer"}}, r"a: preprocess_cfg has resize_mode 'longer', but .* shortest"),
        ({"preprocess_cfg": {"mode": "L"}}, r"has mode 'L', but .* 'RGB'"),
        ({"preprocess_cfg": {"interpolation": "lanczos"}}, r"has interpolation 'lanczos', but .* bicubic, bilinear"),
        ({"preprocess_cfg": {"size": [1, 2, 3]}}, r"has size \[1, 2, 3\], but .* of one or two positive integers"),
        ({"preprocess_cfg": {"fill_color": 300}}, r"has fill_color 300, but .* from 0 to 255"),
        ({"preprocess_cfg": {"crop": 1}}, r"has crop 1, which may change pictures"),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, r"has input_size \[1, 28, 28\], but .* \(3, height, width\)"),
        ({"pretrained_cfg": {"interpolation": "random"}}, r"has interpolation 'random', but .* one of nearest"),
        ({"pretrained_cfg": {"crop_mode": "centre"}}, r"has crop_mode 'centre', but .* one of center, squash, border"),
        ({"pretrained_cfg": {"crop_pct": 1.2}}, r"has crop_pct 1.2, but .* above 0 and up to 1"),
        ({"pretrained_cfg": {"crop_border_pixels": 4}}, r"has crop_border_pixels 4, which may change pictures"),
    ],
)
def test_what_cannot_be_expressed_is_refused(data: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        picture_transform(data, "a")


KEYS = {
    "DeiTImageProcessor": "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize "
    "image_mean image_std do_pad do_convert_rgb default_to_square data_format",
    "open_clip": "size mode mean std interpolation resize_mode fill_color",
    "timm": "input_size crop_pct crop_mode interpolation mean std",
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in KEYS.items() for key in keys.split()])
def test_values_of_another_kind_are_refused_or_read(kind: str, key: str) -> None:
    """Never anything but an answer or an error that has the key."""
    refused = 0
    for value in ("a", [], {}, {"a": 1}, [1, "a", None], -1, 0, 2.5, True, [[1]]):
        try:
            picture_transform({key: value}, "a", kind)
        except InputError as error:
            refused += 1
            assert f"has {key} {value!r}" in str(error)
    assert refused >= 5


@pytest.mark.parametrize(
    ("kind", "transform", "message"),
    [
        ("CLIPImageProcessor", ImageTransformSpec((32, 32)), r"CLIPImageProcessor has no way to say .*fit='squash'"),
        ("CLIPImageProcessor", ImageTransformSpec((32, 32), "square"), r"is .*fit='square'.*; the closest .*'squash'"),
        ("ViTImageProcessor", ImageTransformSpec((32, 32), "squash", transparency="ignored"), r"has no way to say"),
        ("LlavaImageProcessor", ImageTransformSpec((32, 32), "square"), r"the closest .*fill=\(122, 116, 104\)"),
        (
            "BitImageProcessor",
            ImageTransformSpec((32, 32), "crop", resize=(33, 33), rounding="even"),
            r"has no way to say that the transform of pictures is .*rounding='even'",
        ),
        (
            "SwinImageProcessor",
            ImageTransformSpec((32, 32), "squash"),
            r"has image_processor_type 'SwinImageProcessor'",
        ),
        ("open_clip", ImageTransformSpec((32, 32), "squash"), r"is ImageTransformSpec\(.*; .*transparency='ignored'"),
        ("open_clip", ImageTransformSpec((32, 32), "squash", interpolation="lanczos"), r"interpolation='lanczos'"),
        ("timm", ImageTransformSpec((32, 32), "native", patch=8), r"timm has no way to say .*fit='native'"),
        (
            "timm",
            ImageTransformSpec((32, 64), "squash", resize=(64, 65)),
            r"timm has no way to say .*resize=\(64, 65\)",
        ),
    ],
)
def test_what_a_library_cannot_say_is_refused(kind: str, transform: ImageTransformSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        picture_config(kind, PictureReading(transform, CLIP, HALF))
