"""timm's ``pretrained_cfg``, for pictures as it evaluates them: ``resolve_data_config`` and ``create_transform``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.resize import Interpolation, Size
from mmformer.interop.pictures.reading import PictureReading, colour, expressible, known, whole

DEFAULTS: Mapping[str, Any] = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_IGNORED = (
    *("url", "file", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load", "state_dict"),
    *("test_input_size", "test_crop_pct", "min_input_size", "fixed_input_size", "pool_size", "test_pool_size"),
    *("num_classes", "label_offset", "label_names", "label_descriptions", "first_conv", "classifier"),
    *("license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
)
"""Of the model, or of its test at another size, which timm does where it is asked to."""

_USUAL = (1.0, 0.95, 0.9, 0.875)
_FITS: Mapping[str, Any] = {"center": "crop", "squash": "squash", "border": "pad"}


def read(data: Mapping[str, Any], where: str) -> PictureReading:
    """What a config says.

    Raises:
        InputError: an unknown key, or a value that cannot be expressed.
    """
    said = {**DEFAULTS, **known(data, DEFAULTS, _IGNORED, where)}
    sides, mode, share = said["input_size"], said["crop_mode"], said["crop_pct"]
    right = isinstance(sides, list | tuple) and len(sides) == 3 and all(map(whole, sides)) and sides[0] == 3
    expressible(right, said, "input_size", "of (3, height, width)", where)
    kernels = get_args(Interpolation)
    expressible(said["interpolation"] in kernels, said, "interpolation", f"one of {', '.join(kernels)}", where)
    expressible(mode in list(_FITS), said, "crop_mode", f"one of {', '.join(_FITS)}", where)
    expressible(isinstance(share, int | float) and 0 < share <= 1, said, "crop_pct", "above 0 and up to 1", where)
    mean, std = colour(said, "mean", where), colour(said, "std", where)
    size = (sides[1], sides[2])
    resize = _resized(size, share)
    fields: dict[str, Any] = {"interpolation": said["interpolation"], "transparency": "ignored"}
    if mode != "squash" or resize != size:
        fields["resize"] = resize
    if mode == "center" or resize != size:
        fields["rounding"] = "even"
    if mode == "border":
        fields["fill"] = tuple(round(255 * value) for value in mean)
    return PictureReading(ImageTransformSpec(size, _FITS[mode], **fields), mean, std)


def write(reading: PictureReading) -> dict[str, Any]:
    """The config that is closest to what is asked."""
    transform = reading.transform
    modes = {fit: mode for mode, fit in _FITS.items()}
    return {
        "input_size": [3, *transform.size],
        "crop_pct": _share(transform.size, transform.resize or transform.size),
        "crop_mode": modes.get(transform.fit, "squash"),
        "interpolation": transform.interpolation,
        "mean": list(reading.mean),
        "std": list(reading.std),
    }


def _resized(size: Size, share: float) -> Size:
    """What timm resizes to, so that the size is this share of it."""
    return math.floor(size[0] / share), math.floor(size[1] / share)


def _share(size: Size, resize: Size) -> float:
    """A usual share by which a size is resized so, or the one of the fewest digits; the closest, where there is none.

    Several may be right, for the result is rounded down.
    """
    close = [size[0] / resize[0], size[0] / (resize[0] + 0.5), size[1] / (resize[1] + 0.5)]
    rounded = [round(share, digits) for digits in range(1, 8) for share in close]
    fitting = [share for share in (*_USUAL, *rounded) if share > 0 and _resized(size, share) == resize]
    return fitting[0] if fitting else close[0]
