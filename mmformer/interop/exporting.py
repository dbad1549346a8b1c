"""Bundles as what other libraries open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmformer.bundle import Transforms, load_bundle
from mmformer.errors import InputError, nearest
from mmformer.files import whole_folder
from mmformer.interop import huggingface, open_clip, timm, unread
from mmformer.interop.checkpoint import State
from mmformer.interop.family import Family, Library
from mmformer.interop.fields import complete
from mmformer.interop.generation_defaults import write_folder_defaults
from mmformer.interop.ids import with_special
from mmformer.interop.origin import FOLDER, Origin, read_origin
from mmformer.interop.pictures import PictureReading, write_folder_pictures
from mmformer.interop.rules import to_theirs
from mmformer.interop.sounds import write_folder_sounds
from mmformer.interop.source import families_of
from mmformer.interop.vocabularies import write_vocabularies
from mmformer.models.model import Model
from mmformer.tokenizers.image import ImageTokenizerSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec

Writer = Callable[[Path, Family, str, Mapping[str, Any], State], None]

TARGETS: dict[Library, Writer] = {
    "hf": huggingface.write_folder,
    "open_clip": open_clip.write_folder,
    "timm": timm.write_folder,
}
"""The libraries that models go out to, and what writes a folder for each."""


def export_model(bundle: Path, library: Library, folder: Path) -> str:
    """Write a bundle's model as a library has it; the family and the class that it became.

    What came from there and was not trained goes back to the bit, with the files that came with it.

    Raises:
        InputError: an unknown library; no family of it has such models, and how each differs.
    """
    if library not in TARGETS:
        targets = (*TARGETS, "safetensors")
        raise InputError(f"--to must be one of {', '.join(targets)}, but is '{library}'.{nearest(library, targets)}")
    model, transforms = load_bundle(bundle)
    origin = read_origin(bundle)
    family, layout, config = expressed(model, library, origin, str(bundle))
    known = [transforms.classes.get(path.rpartition(".")[2]) for path in family.classes]
    if names := next(filter(None, known), None):
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
        if library == "hf" and (transforms.several or "problem_type" in (origin.config if origin else {})):
            config["problem_type"] = _problem(transforms, origin)
    same = origin is not None and (origin.library, origin.family, origin.layout) == (library, family.name, layout)
    rules = family.weights(config, layout)
    state: Mapping[str, Any] = model.state_dict()
    optional = [name for rule in rules if rule.optional for name in rule.theirs]
    theirs = to_theirs(rules, state, origin.absent if origin and same else optional)
    if origin is not None and same:
        theirs = origin.restored(theirs) | unread.given_back(bundle)
        said = complete(origin.said, family.defaults)
        config = _with_changes(origin.config, said, config)
    elif library == "hf":
        config = with_special(config, model.spec, family, layout)
    with whole_folder(folder) as partial:
        if library == "hf":
            write_vocabularies(model.spec, partial)
        if same:
            for file in sorted((bundle / FOLDER).iterdir()):
                if file.name not in ("origin.json", "config.json", unread.FILE):
                    (partial / file.name).write_bytes(file.read_bytes())
        if family.sound:
            tokenizer = model.spec.encoders[family.sound.split(".")[1]].tokenizer
            assert isinstance(tokenizer, SpectrogramSpec) and transforms.audio is not None
            write_folder_sounds(partial, tokenizer, transforms.audio, str(bundle))
        TARGETS[library](partial, family, layout, config, theirs)
        told: list[str] = []
        if library == "hf":
            told.append(write_folder_defaults(partial, family, config, model.spec, transforms.generation))
        if family.picture and family.has(family.picture, layout) and transforms.image is not None:
            tokenizer = model.spec.encoders[family.picture.split(".")[1]].tokenizer
            assert isinstance(tokenizer, ImageTokenizerSpec)
            reading = PictureReading(transforms.image, tokenizer.mean, tokenizer.std)
            if not same or library != "open_clip":  # whose config says a part of it elsewhere
                told.append(write_folder_pictures(partial, reading, library))
    return "; ".join(filter(None, [f"{family.name} ({layout})", *told]))


def _problem(transforms: Transforms, origin: Origin | None) -> str | None:
    """What transformers calls it where several classes may be true at once, and where one is."""
    kind: str | None = None if origin is None else origin.config.get("problem_type")
    if transforms.several:
        return "multi_label_classification"
    return None if kind == "multi_label_classification" else kind


def _with_changes(origin: Mapping[str, Any], said: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it came, but for what it says otherwise now; ``said`` has its defaults written out."""
    config = dict(origin)
    for key, value in now.items():
        before = said.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            config[key] = _with_changes(origin.get(key) or {}, before, value)
        elif before != value:
            config[key] = value
    return config


def expressed(model: Model, library: Library, origin: Origin | None, where: str) -> tuple[Family, str, dict[str, Any]]:
    """The first family and class that the model's spec is one of: those that it came from first, then that family's."""
    known = [(family, layout) for family in families_of(library) for layout in family.layouts]
    known.sort(key=lambda each: (len(each[0].layouts[each[1]].without), each[0].variant))  # as much as may be
    if origin is not None and origin.library == library:
        came_from = (origin.family, origin.layout)
        known.sort(key=lambda each: ((each[0].name, each[1]) != came_from, each[0].name != origin.family))
    refusals: list[str] = []
    for family, layout in known:
        try:
            came = origin is not None and (origin.library, origin.family, origin.layout) == (
                library,
                family.name,
                layout,
            )
            if origin is not None and came and family.says(origin.said, model.spec, layout, where):
                return family, layout, complete(origin.said, family.defaults)
            return family, layout, family.config(model.spec, layout, where)
        except InputError as error:
            refusals.append(str(error))
    # What has the same parts comes nearest, and of those what its config could have said.
    refusals.sort(key=lambda refusal: (": it has no " in refusal, " cannot say " in refusal))
    shown = "\n  ".join(list(dict.fromkeys(refusals))[:4])
    raise InputError(f"{where}: no family of {library} is such a model:\n  {shown}")
