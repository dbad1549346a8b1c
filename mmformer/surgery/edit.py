"""A bundle made into another one: for other sizes of pictures and sounds, other words, or without some parts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError, nearest
from mmformer.interop import generation_defaults, unread
from mmformer.interop.checkpoint import read_json
from mmformer.interop.ids import with_ids
from mmformer.interop.origin import FOLDER, read_origin
from mmformer.interop.vocabularies import KEPT
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.spec import require
from mmformer.surgery.patches import remade_patches, with_patch
from mmformer.surgery.places import moved, remade_places, with_places
from mmformer.surgery.remade import Report, transplant
from mmformer.surgery.words import NewRows, remade_room, remade_words, with_room, with_vocabulary
from mmformer.tokenizers.spectrogram import SpectrogramSpec

GROUPS = ("encoders", "decoders", "heads")


@dataclass(frozen=True)
class EditSpec:
    """What is to change; None: as it is.

    Attributes:
        image_size: (height, width) of pictures in pixels; learned positions are resized.
        audio_seconds: longest sound; learned positions are resized.
        patch: side of patches of pictures in pixels; their projection and learned positions are resized.
        vocabulary: another vocabulary's file; rows of pieces that both have are kept.
        new_rows: what the others begin with: the ``mean`` of all rows, or what ``random`` drawing gives.
        context_length: longest text in tokens; where learned positions end before it, new ones are drawn.
        drop: parts to leave out, such as ``decoders.caption``; stacks that nothing names any more go with them.
        seed: of what is drawn.
    """

    image_size: tuple[int, int] | None = None
    audio_seconds: float | None = None
    patch: int | None = None
    vocabulary: str | None = None
    new_rows: NewRows = "mean"
    context_length: int | None = None
    drop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.patch is None or self.patch >= 1, self, "patch", "at least 1 pixel")
        require(self.new_rows in ("mean", "random"), self, "new_rows", "'mean' or 'random'")
        read = self.vocabulary is not None or self.new_rows == "mean"
        require(read, self, "new_rows", "left out without a vocabulary: no row is new")
        if all(getattr(self, name) in (None, ()) for name in (*SIZES, "vocabulary", "context_length", "drop")):
            raise InputError(
                "nothing is to change: name --image-size, --patch, --vocabulary, --drop or another option."
            )


SIZES = ("image_size", "audio_seconds", "patch")
"""What changes how many tokens there are of a picture or a sound."""

PROCESSOR = "processor_config.json"
PREPARING: Mapping[str, tuple[str, ...]] = {
    "hf": ("preprocessor_config.json", PROCESSOR),
    "open_clip": ("open_clip_config.json",),
}
"""Files of each library that say how pictures and sounds are prepared, of which an export to it mends that part."""


class Edited(NamedTuple):
    model: Model
    transforms: Transforms
    report: Report


def edit_bundle(bundle: Path, folder: Path, spec: EditSpec) -> Report:
    """Write a bundle that is another one, changed.

    Raises:
        InputError: the bundle cannot be read, or its model cannot be changed so.
    """
    model, transforms = load_bundle(bundle)
    edited = edit(model, transforms, spec)
    beside = _beside(bundle, model, edited, spec)
    lines = "".join(f"    {line}\n" for line in edited.report.lines())
    card = f"{(bundle / 'README.md').read_text(encoding='utf-8').rstrip()}\n\n## Edited\n\n{spec}\n\n{lines}"
    save_bundle(folder, edited.model, edited.transforms, card, beside)
    return edited.report


def edit(model: Model, transforms: Transforms, spec: EditSpec) -> Edited:
    """A model and its transforms, changed; the model that is handed in stays as it is.

    Raises:
        InputError: it cannot be changed so.
    """
    changed = _without(model.spec, spec.drop)
    after = _transforms(transforms, changed, spec)
    encoders = changed.encoders
    if spec.patch is not None:
        encoders = with_patch(encoders, spec.patch)
    if spec.audio_seconds is not None:
        encoders = _with_frames(encoders, spec.audio_seconds)
    if any(getattr(spec, name) is not None for name in SIZES):
        changed = with_places(changed, encoders, transforms, after)
    resized = moved(model.spec, changed)
    if spec.vocabulary is not None:
        changed = with_vocabulary(changed, spec.vocabulary)
    if spec.context_length is not None:
        changed = with_room(changed, spec.context_length, resized)
    new = _drawn(changed, spec.seed)
    remade = dict(remade_patches(model, new)) | dict(remade_places(model, new, resized))
    remade |= dict(remade_room(model, new, moved(model.spec, changed) - resized))
    remade |= dict(remade_words(model, new, spec.new_rows))
    return Edited(new, after, transplant(model, new, remade))


def _beside(bundle: Path, model: Model, edited: Edited, spec: EditSpec) -> dict[str, bytes]:
    """The files that came with a bundle's model, as far as they are true of the edited one; the report has the others.

    An export writes a config, which ``origin.json`` has too, and a vocabulary anew.
    """
    files = {path.name: path.read_bytes() for path in sorted((bundle / FOLDER).glob("*"))}
    origin = read_origin(bundle)
    kept = _true(files, "" if origin is None else origin.library, spec)
    edited.report.beside += [name for name in files if name not in {*kept, "config.json", *KEPT}]
    if spec.patch is not None and PROCESSOR in kept:
        files[PROCESSOR] = _processor(bundle / FOLDER / PROCESSOR, spec.patch)
    beside = {f"{FOLDER}/{name}": files[name] for name in files if name in kept and name != unread.FILE}
    if origin is not None and spec.vocabulary is not None:
        origin = with_ids(origin, edited.model.spec)
    if origin is not None and (edited.report.remade or edited.report.new):
        origin = origin.in_float32()
    if origin is not None:
        beside[f"{FOLDER}/origin.json"] = origin.to_bytes()
    left, rows = unread.given_back(bundle), _changed_rows(model, edited)
    fitting = {name: value for name, value in left.items() if not rows & set(value.shape)}
    edited.report.beside += [name for name in left if name not in fitting]
    return beside | unread.kept(fitting)


def _true(files: Collection[str], library: str, spec: EditSpec) -> set[str]:
    """Which of the files that came with a model of a library are true of the edited one, or are mended by an export."""
    own, true = PREPARING.get(library, ()), set(files) - {"config.json"}
    if any(getattr(spec, name) is not None for name in SIZES):
        true -= {name for names in PREPARING.values() for name in names if name not in own}
    if spec.vocabulary is not None or spec.context_length is not None:
        true &= {"origin.json", unread.FILE, *own, *([] if spec.vocabulary else [generation_defaults.FILE])}
    return true


def _processor(file: Path, side: int) -> bytes:
    """A processor's config that says the side of patches, where it does: LLaVA's counts placeholders by it."""
    said = read_json(file)
    if "patch_size" not in said:
        return file.read_bytes()
    return (json.dumps(said | {"patch_size": side}, indent=2, ensure_ascii=False) + "\n").encode()


def _changed_rows(model: Model, edited: Edited) -> set[int]:
    """How many rows, of pieces or of places, the model's tables had that have another number of them now.

    Other axes do not count: what a patch has (3 16 16) may be as much as a width, which is as it was.
    """
    before, after = model.state_dict(), edited.model.state_dict()
    pairs = [(len(before[name]), len(after[name])) for name in edited.report.remade]
    return {old for old, new in pairs if old != new}


def _drawn(spec: ModelSpec, seed: int) -> Model:
    with torch.device("meta"):
        model = spec.build()
    model = model.to_empty(device="cpu")
    model.initialise(seed)
    return model.eval().requires_grad_(False)


def _without(spec: ModelSpec, parts: Collection[str]) -> ModelSpec:
    """A spec without some parts, and without the stacks that nothing names any more."""
    known = [f"{group}.{name}" for group in GROUPS for name in getattr(spec, group)]
    for part in parts:
        if part not in known:
            raise InputError(f"--drop: the model has no {part}, but {', '.join(known)}.{nearest(part, known)}")
    left = {
        group: {name: part for name, part in getattr(spec, group).items() if f"{group}.{name}" not in parts}
        for group in GROUPS
    }
    used = {part.stack for group in ("encoders", "decoders") for part in left[group].values()}
    used |= {head.runs for head in left["heads"].values()}
    stacks = {name: stack for name, stack in spec.stacks.items() if name in used}
    return dataclasses.replace(spec, stacks=stacks, **left)


def _transforms(old: Transforms, spec: ModelSpec, edit: EditSpec) -> Transforms:
    """What makes pictures and sounds into what the changed model reads."""
    read = {encoder.tokenizer.modality for encoder in spec.encoders.values()}
    image, audio = (old.image if "image" in read else None), (old.audio if "audio" in read else None)
    if edit.image_size is not None:
        if image is None:
            raise InputError(f"--image-size is of pictures, but {_unread('image', read)}.")
        image = _sized(image, edit.image_size)
    if edit.audio_seconds is not None:
        if audio is None:
            raise InputError(f"--audio-seconds is of sounds, but {_unread('audio', read)}.")
        audio = dataclasses.replace(audio, seconds=edit.audio_seconds)
    if edit.patch is not None and image is not None and image.patch is not None:
        image = dataclasses.replace(image, patch=edit.patch)
    classes = {name: names for name, names in old.classes.items() if name in spec.heads}
    several = tuple(name for name in old.several if name in classes)
    return Transforms(image, audio, classes, several, old.generation if spec.decoders else None)


def _unread(modality: str, read: Collection[str]) -> str:
    if modality not in read:
        return "no encoder of the model reads them"
    return f"the bundle does not say how they are prepared ({modality} of transforms.yaml is null)"


def _sized(image: ImageTransformSpec, size: tuple[int, int]) -> ImageTransformSpec:
    """What is cut out of a picture that was resized before is as much of it as it was."""
    if image.resize is None:
        return dataclasses.replace(image, size=size)
    (high, wide), (height, width) = image.resize, image.size
    resize = round(high * size[0] / height), round(wide * size[1] / width)
    return dataclasses.replace(image, size=size, resize=resize)


def _with_frames(encoders: Mapping[str, EncoderSpec], seconds: float) -> dict[str, EncoderSpec]:
    """Encoders, whose spectra of a fixed number of frames have that of so many seconds."""
    changed = dict(encoders)
    for name, encoder in encoders.items():
        tokenizer = encoder.tokenizer
        if isinstance(tokenizer, SpectrogramSpec) and tokenizer.frames is not None:
            frames = tokenizer.frames_of(seconds)
            changed[name] = dataclasses.replace(encoder, tokenizer=dataclasses.replace(tokenizer, frames=frames))
    return changed
