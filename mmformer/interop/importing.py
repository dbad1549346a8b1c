"""Models from elsewhere as bundles."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from mmformer.bundle import Transforms, check_depth, save_bundle
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError, foreign, nearest
from mmformer.interop import huggingface, open_clip, timm, unread
from mmformer.interop.beside import with_pictures, with_texts
from mmformer.interop.checkpoint import State
from mmformer.interop.family import class_names
from mmformer.interop.generation_defaults import read_defaults
from mmformer.interop.origin import FOLDER, Origin, precisions
from mmformer.interop.rules import to_ours
from mmformer.interop.sounds import folder_sounds
from mmformer.interop.source import Found
from mmformer.models.model import Model, ModelSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec

SOURCES: dict[str, Callable[[str], Found]] = {
    "hf": huggingface.open_folder,
    "open_clip": open_clip.open_model,
    "timm": timm.open_model,
}
"""What stands before the colon of a source, and what opens what stands after it."""

BESIDE = ("*.json", "*.txt", "*.model", "*.spm", "*.gz")
"""Files that go with a model, and come back unchanged when it is exported; weights and indices are not among them."""


class Imported(NamedTuple):
    """What came of an import, to be told."""

    spec: ModelSpec
    family: str
    parameters: int
    notes: list[str]  # what the bundle cannot do, or was changed on the way


def import_model(source: str, bundle: Path) -> Imported:
    """Make a bundle of a model from elsewhere.

    Args:
        source: ``hf:FOLDER`` and the like; see ``SOURCES``.

    Raises:
        InputError: an unknown kind of source, what its family cannot express, with both sides, or damage.
    """
    with foreign(source):
        found = open_source(source)
    family = found.family
    name = f"{family.library} {family.name} ({found.layout})"
    with tempfile.TemporaryDirectory() as scratch:
        with foreign(source):
            built = build(found, Path(scratch))
        origin = Origin(
            family.library,
            family.name,
            found.layout,
            dict(found.config),
            built.absent,
            precisions(found.state),
            {key: value for key, value in found.said.items() if (key, value) not in found.config.items()},
        )
        kept = {**_beside(found.folder), **unread.kept(built.unread), f"{FOLDER}/origin.json": origin.to_bytes()}
        parameters = sum(value.numel() for value in built.model.parameters())
        card = f"# {family.name}\n\nImported from {name}: {parameters:,} parameters.\n"
        save_bundle(bundle, built.model, built.transforms, card, kept)
    return Imported(built.model.spec, name, parameters, built.notes)


def open_source(source: str) -> Found:
    """What a source names.

    Raises:
        InputError: an unknown kind of source.
    """
    if Path(source).is_file():
        return open_clip.open_file(Path(source))
    kind, colon, name = source.partition(":")
    if not colon or kind not in SOURCES:
        known = ", ".join(f"{known}:NAME" for known in SOURCES)
        raise InputError(f"'{source}' names no model: write {known}.{nearest(kind, SOURCES)}")
    return SOURCES[kind](name)


class Built(NamedTuple):
    """A model, and what goes with it."""

    model: Model  # in evaluation mode
    transforms: Transforms
    absent: tuple[str, ...]  # optional names that its weights had not
    notes: list[str]
    unread: State  # of its weights, what its class has no place for


def build(found: Found, scratch: Path) -> Built:
    """The model that was found.

    Args:
        scratch: an empty folder for what it reads besides, until it is in a bundle.

    Raises:
        InputError: its config or its weights do not fit its family.
    """
    family = found.family
    notes: list[str] = []
    spec = family.spec(found.said, found.layout, found.where)
    spec = with_texts(spec, found, scratch, notes)
    spec, image = with_pictures(spec, found, notes)
    audio = None
    if family.sound:
        spec, audio = with_sounds(spec, family.sound.split(".")[1], found.folder)
    heads = [path.split(".")[1] for path in family.classes if family.has(path, found.layout)]
    classes = {head: class_names(found.config) for head in heads[:1]}  # of those that a mean is taken of, the mean's
    kind = found.config.get("problem_type")
    several = tuple(classes) if kind == "multi_label_classification" else ()
    if classes and kind == "regression":
        notes.append(f"its problem_type is {kind}, but what classify says of classes are shares that add up to 1")
    check_depth(spec, found.state, found.where)
    with torch.device("meta"):
        model = spec.build()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    rules = family.weights(found.said, found.layout)
    read, beside = unread.parted(found.state, family.layouts[found.layout].unread)
    if beside:
        notes.append(f"{found.layout} does not read {', '.join(sorted(beside))}, which go along unread")
    state, absent = to_ours(rules, read, shapes, str(found.folder or found.where))
    model.load_state_dict({name: _float32(value) for name, value in state.items()}, assign=True)
    written = read_defaults(family, found.config, found.folder, spec, notes)
    return Built(model.eval(), Transforms(image, audio, classes, several, written), absent, notes, beside)


def with_sounds(spec: ModelSpec, name: str, folder: Path | None) -> tuple[ModelSpec, AudioTransformSpec]:
    """The spec whose encoder of sounds prepares them as the files beside the model say, and what goes before it."""
    encoder = spec.encoders[name]
    assert isinstance(encoder.tokenizer, SpectrogramSpec)
    tokenizer, transform = folder_sounds(folder, encoder.tokenizer)
    encoders = {**spec.encoders, name: dataclasses.replace(encoder, tokenizer=tokenizer)}
    return dataclasses.replace(spec, encoders=encoders), transform


def _beside(folder: Path | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    files = sorted({path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()})
    return {f"{FOLDER}/{path.name}": path.read_bytes() for path in files if not path.name.endswith(".index.json")}


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
