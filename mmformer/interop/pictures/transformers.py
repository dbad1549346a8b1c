"""transformers' image processors: ``preprocessor_config.json``, or the part ``image_processor`` of
``processor_config.json``.

A processor's name does not say by whose arithmetic pictures are resized: the library takes PyTorch's wherever it can,
for the classes of older versions too. So do we, but for names that end with ``Pil``, and for the kernel that PyTorch
lacks, Lanczos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.resize import Interpolation, Size
from mmformer.errors import InputError, nearest
from mmformer.interop.pictures.reading import PictureReading, colour, expressible, known, whole

_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_EDGE = {"size": {"shortest_edge": 224}, "default_to_square": False}
_SQUARE = {"size": {"height": 224, "width": 224}}
_CUT = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}

PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "BitImageProcessor": {**_CLIP, **_EDGE, **_CUT},  # DINOv2
    "BlipImageProcessor": {**_CLIP, "size": {"height": 384, "width": 384}},
    "CLIPImageProcessor": {**_CLIP, **_EDGE, **_CUT},
    "DeiTImageProcessor": {**_HALF, "size": {"height": 256, "width": 256}, **_CUT},
    "LlavaImageProcessor": {**_CLIP, **_EDGE, **_CUT, "do_pad": False},
    "SiglipImageProcessor": {**_HALF, **_SQUARE, "default_to_square": False},
    "ViTImageProcessor": {**_HALF, **_SQUARE, "resample": 2},
}
"""What each class means where its config says nothing, beyond what all of them mean."""

OF_MODELS: Mapping[str, str] = {
    **dict.fromkeys(("vit", "vit_mae", "vit_msn", "swin"), "ViTImageProcessor"),
    **dict.fromkeys(("bit", "dinov2", "dinov2_with_registers"), "BitImageProcessor"),
    **dict.fromkeys(("blip", "blip-2"), "BlipImageProcessor"),
    "clip": "CLIPImageProcessor",
    "deit": "DeiTImageProcessor",
    "llava": "LlavaImageProcessor",
    "siglip": "SiglipImageProcessor",
}
"""The class of each model's processor, by the ``model_type`` of its config, where the processor's does not name it."""

_ALL: Mapping[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "do_convert_rgb": True,
    "default_to_square": True,
    "data_format": "channels_first",
}
_IGNORED = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"),
    *("return_tensors", "device", "disable_grouping", "input_data_format"),
)
_KERNELS: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(data: Mapping[str, Any], where: str, kind: str | None = None) -> PictureReading:
    """What a processor's config says.

    Args:
        data: the config.
        where: what to call it in an error.
        kind: the class, where the config does not name it.

    Raises:
        InputError: an unknown class or key, or a value that cannot be expressed.
    """
    name = str(data.get("image_processor_type") or data.get("feature_extractor_type") or kind)
    processor = base(name, where)
    keys = (*_ALL, "size", "image_mean", "image_std")
    said = {**_ALL, **PROCESSORS[processor], **known(data, keys, _IGNORED, where)}
    for key in ("do_resize", "do_rescale"):
        expressible(said[key] is True, said, key, "true", where)
    for key in ("do_center_crop", "do_normalize", "do_pad", "do_convert_rgb", "default_to_square"):
        expressible(isinstance(said[key], bool), said, key, "true or false", where)
    factor = said["rescale_factor"]
    usual = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)
    expressible(usual, said, "rescale_factor", "1/255", where)
    expressible(said["data_format"] == "channels_first", said, "data_format", "'channels_first'", where)
    kernels = ", ".join(f"{number} ({kernel})" for number, kernel in _KERNELS.items())
    expressible(said["resample"] in list(_KERNELS), said, "resample", kernels, where)
    pads = processor == "LlavaImageProcessor"
    expressible(pads or said["do_pad"] is False, said, "do_pad", "false, but for LlavaImageProcessor", where)
    mean, std = colour(said, "image_mean", where), colour(said, "image_std", where)
    kernel = _KERNELS[said["resample"]]
    by_pillow = name.endswith("Pil") or kernel == "lanczos"
    transform = ImageTransformSpec(
        **_geometry(said, mean, where), interpolation=kernel, resampler="pillow" if by_pillow else "torch"
    )
    if said["do_normalize"] is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return PictureReading(transform, mean, std)


def write(kind: str, reading: PictureReading) -> dict[str, Any]:
    """The config of a class that is closest to what is asked."""
    transform = reading.transform
    processor = base(kind, "The export")
    resize = transform.resize or transform.size
    data = {
        "image_processor_type": processor + ("Pil" if transform.resampler == "pillow" else ""),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resize[0], "width": resize[1]},
        "resample": next(number for number, kernel in _KERNELS.items() if kernel == transform.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(reading.mean),
        "image_std": list(reading.std),
    }
    if transform.fit == "crop":
        data["size"] = {"shortest_edge": resize[0]}
    cut = transform.fit == "crop" or transform.resize is not None
    if cut:
        data["crop_size"] = {"height": transform.size[0], "width": transform.size[1]}
    if cut or "do_center_crop" in PROCESSORS[processor]:
        data["do_center_crop"] = cut
    if "do_pad" in PROCESSORS[processor]:
        data["do_pad"] = transform.fit == "square"
    return data


def base(name: str, where: str) -> str:
    """The class of a name, which may have an ending for whose arithmetic it is, or an older beginning.

    Raises:
        InputError: no such class is known.
    """
    found = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if found not in PROCESSORS:
        raise InputError(
            f"{where} has image_processor_type {name!r}, but mmformer can do what these do: "
            f"{', '.join(PROCESSORS)}.{nearest(found, PROCESSORS)}"
        )
    return found


def _geometry(said: Mapping[str, Any], mean: tuple[float, float, float], where: str) -> dict[str, Any]:
    """The fields size, fit, fill and resize of a transform."""
    edge, size = _size(said, "size", said["default_to_square"], where)
    fields: dict[str, Any] = {"fit": "squash"}
    if said["do_pad"]:
        edge, fields = False, {"fit": "square", "fill": tuple(int(value * 255) for value in mean)}
    if edge:
        fields["fit"] = "crop"
        expressible(said["do_center_crop"] is True, said, "do_center_crop", "true where size has shortest_edge", where)
    if not said["do_center_crop"]:
        return {**fields, "size": size}
    _, crop = _size(said, "crop_size", True, where)
    fits = crop[0] <= size[0] and crop[1] <= size[1]
    expressible(fits, said, "crop_size", f"no larger than the size, {said['size']!r}", where)
    return {**fields, "size": crop, "resize": None if crop == size and not edge else size}


def _size(said: Mapping[str, Any], key: str, square: bool, where: str) -> tuple[bool, Size]:
    """Whether it is the shorter side that has it, and (height, width)."""
    value = said[key]
    if whole(value):
        return not square, (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(whole, value)):
        return False, (value[0], value[1])
    held = {name: side for name, side in value.items() if side is not None} if isinstance(value, Mapping) else {}
    if held.keys() == {"height", "width"} and all(map(whole, held.values())):
        return False, (held["height"], held["width"])
    edge = held.keys() == {"shortest_edge"} and whole(held["shortest_edge"]) and key == "size"
    expressible(edge, said, key, "of height and width" + (", or shortest_edge" if key == "size" else ""), where)
    return True, (held["shortest_edge"], held["shortest_edge"])
