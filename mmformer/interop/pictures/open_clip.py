"""open_clip's ``preprocess_cfg``, as ``open_clip_config.json`` has it.

It converts a picture to RGB after resizing it, so that one with a palette or transparency comes out another there: made
RGB first, it is the same to the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.interop.pictures.reading import PictureReading, colour, expressible, known, whole

DEFAULTS: Mapping[str, Any] = {
    "size": 224,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def read(data: Mapping[str, Any], where: str) -> PictureReading:
    """What a config says.

    Raises:
        InputError: an unknown key, or a value that cannot be expressed.
    """
    said = {**DEFAULTS, **known(data, DEFAULTS, (), where)}
    expressible(said["mode"] == "RGB", said, "mode", "'RGB'", where)
    sides = [said["size"]] * 2 if whole(said["size"]) else said["size"]
    right = isinstance(sides, list | tuple) and len(sides) == 2 and all(map(whole, sides))
    expressible(right, said, "size", "of one or two positive integers", where)
    size, mode = (sides[0], sides[1]), said["resize_mode"]
    kernels = ("bicubic", "bilinear", "random")
    expressible(said["interpolation"] in kernels, said, "interpolation", f"one of {', '.join(kernels)}", where)
    expressible(mode in list(_FITS), said, "resize_mode", f"one of {', '.join(_FITS)}", where)
    grey = said["fill_color"]
    expressible(whole(grey, 0) and grey <= 255, said, "fill_color", "from 0 to 255", where)
    # What it does, whatever it says: random is for training, and a shorter side is bicubic where sides differ.
    bilinear = said["interpolation"] == "bilinear" and (mode != "shortest" or size[0] == size[1])
    fields: dict[str, Any] = {"interpolation": "bilinear" if bilinear else "bicubic", "transparency": "ignored"}
    if mode != "squash":
        fields["resize"] = size
    if mode == "shortest":
        fields["rounding"] = "even"
    if mode == "longest":
        fields["fill"] = (grey, grey, grey)
    for key in ("mean", "std"):
        said[key] = (said[key],) * 3 if isinstance(said[key], float) else said[key]
    transform = ImageTransformSpec(size, _FITS[mode], **fields)
    return PictureReading(transform, colour(said, "mean", where), colour(said, "std", where))


def write(reading: PictureReading) -> dict[str, Any]:
    """The config that is closest to what is asked."""
    transform = reading.transform
    height, width = transform.size
    modes = {fit: mode for mode, fit in _FITS.items()}
    return {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": list(reading.mean),
        "std": list(reading.std),
        "interpolation": "bilinear" if transform.interpolation == "bilinear" else "bicubic",
        "resize_mode": modes.get(transform.fit, "squash"),
        "fill_color": transform.fill[0] if transform.fit == "pad" else 0,
    }


_FITS: Mapping[str, Any] = {"shortest": "crop", "longest": "pad", "squash": "squash"}
