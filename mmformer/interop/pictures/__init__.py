"""How models from elsewhere read pictures, both ways: transformers' processors, open_clip's and timm's configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmformer.errors import InputError
from mmformer.interop.checkpoint import read_json, write_json
from mmformer.interop.pictures import open_clip, timm, transformers
from mmformer.interop.pictures.reading import PictureReading
from mmformer.spec import told

__all__ = ["PictureReading", "folder_pictures", "picture_config", "picture_transform", "write_folder_pictures"]

_PARTS: Mapping[str, str | None] = {
    "processor_config.json": "image_processor",
    "preprocessor_config.json": None,
    "open_clip_config.json": "preprocess_cfg",
    "config.json": "pretrained_cfg",
}
"""The files that say how pictures are prepared, in the order in which they count, and what part of them does."""


def picture_transform(data: Mapping[str, Any], where: str, kind: str | None = None) -> PictureReading:
    """What a config says of pictures.

    Args:
        data: that of a transformers processor, alone or as the part ``image_processor`` of another; open_clip's
            ``preprocess_cfg`` or timm's ``pretrained_cfg``, alone or as a part.
        where: what to call it in an error.
        kind: whose it is, where it does not say: the name of a transformers class, ``open_clip`` or ``timm``.

    Raises:
        InputError: it says nothing of pictures, or what cannot be expressed: an unknown class, key or value.
    """
    parts = {"image_processor": None, "preprocess_cfg": "open_clip", "pretrained_cfg": "timm"}
    for part, library in parts.items():
        if isinstance(data.get(part), Mapping):
            return picture_transform(data[part], f"{where}: {part}", library or kind)
    if data.get("image_processor_type") or data.get("feature_extractor_type"):
        return transformers.read(data, where)
    if kind == "open_clip" or (kind is None and "resize_mode" in data):
        return open_clip.read(data, where)
    if kind == "timm" or (kind is None and "input_size" in data):
        return timm.read(data, where)
    if kind is None:
        raise InputError(
            f"{where} says nothing of pictures that mmformer knows: no image_processor_type (transformers), no "
            f"preprocess_cfg (open_clip) and no pretrained_cfg (timm). It has {', '.join(data) or 'nothing'}."
        )
    return transformers.read(data, where, kind)


def picture_config(kind: str, reading: PictureReading) -> dict[str, Any]:
    """The config that says it, as the library of the kind reads it: picture_transform backwards.

    Args:
        kind: the name of a transformers class (``preprocessor_config.json``), ``open_clip`` (``preprocess_cfg``) or
            ``timm`` (``pretrained_cfg``).
        reading: what is to be said.

    Raises:
        InputError: the library has no way to say it; both sides are told.
    """
    data = _written(kind, reading)
    back = picture_transform(data, f"A config of {kind}", kind)
    for name, ours, theirs in zip(PictureReading._fields, reading, back, strict=True):
        if ours != theirs:
            raise InputError(
                f"{kind} has no way to say that the {name} of pictures is {told(ours)}; the closest that it says is "
                f"{told(theirs)}."
            )
    return data


def _written(kind: str, reading: PictureReading) -> dict[str, Any]:
    writers = {"open_clip": open_clip.write, "timm": timm.write}
    return writers[kind](reading) if kind in writers else transformers.write(kind, reading)


def folder_pictures(folder: Path) -> PictureReading | None:
    """What the files beside a model say of pictures; None: nothing.

    Args:
        folder: of a model of transformers, open_clip or timm.

    Raises:
        InputError: a file that cannot be read, or what cannot be expressed.
    """
    found = _files(folder)
    for name, data in found.items():
        part = _PARTS[name]
        if part is None or part in data:
            return picture_transform(data, str(folder / name), _class(found))
    return None


def write_folder_pictures(folder: Path, reading: PictureReading, library: str) -> str:
    """Let the files beside a model say how it reads pictures; where they do, they stay as they are.

    Args:
        library: ``hf``, ``open_clip`` or ``timm``; its config is in the folder.

    Returns:
        What that library does otherwise all the same, to be told; "" where there is nothing.

    Raises:
        InputError: the library has no way to say it; both sides are told.
    """
    if folder_pictures(folder) == reading:
        return ""
    found = _files(folder)
    kind = (_class(found) or "ViTImageProcessor") if library == "hf" else library
    names = {"hf": "preprocessor_config.json", "open_clip": "open_clip_config.json", "timm": "config.json"}
    inside = (name for name, said in found.items() if _PARTS[name] == "image_processor" and "image_processor" in said)
    name = next(inside, names[library])
    told, reading = _as_built_in(kind, reading)
    part, made, data = _PARTS[name], picture_config(kind, reading), found.get(name, {})
    write_json(folder / name, made if part is None else {**data, part: {**data.get(part, {}), **made}})
    return told


_BUILT_IN = ("rounding", "transparency")
"""What each library does in a way of its own, by less than a pixel or in pictures that are not opaque."""


def _as_built_in(kind: str, reading: PictureReading) -> tuple[str, PictureReading]:
    """What a library does otherwise, of what no config says, and the reading with that."""
    back = picture_transform(_written(kind, reading), f"A config of {kind}", kind).transform
    other = {name: getattr(back, name) for name in _BUILT_IN if getattr(back, name) != getattr(reading.transform, name)}
    if not other or back.fit != reading.transform.fit:
        return "", reading
    told = " and ".join(
        f"{name} {value!r} in place of {getattr(reading.transform, name)!r}" for name, value in other.items()
    )
    changed = reading._replace(transform=dataclasses.replace(reading.transform, **other))
    return f"pictures are prepared with {told} there", changed


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: read_json(folder / name) for name in _PARTS if (folder / name).is_file()}


def _class(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The class of transformers whose processor a model has, where the processor's config does not name it."""
    return transformers.OF_MODELS.get(str(found.get("config.json", {}).get("model_type")))
