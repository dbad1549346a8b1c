"""A bundle: a folder that says everything that is needed to use a model. It opens without running anybody's code.

model.yaml          the model's spec, with the format's version, and the hashes of the files beside it that it names
model.safetensors   its parameters, float32, by name
NAME.model, .zip    each vocabulary that it reads or writes text with, once: by the name of the first part that uses it
transforms.yaml     what makes pictures and sounds into what it reads, the names of the classes that heads know, and
                    how it writes where nobody says
README.md           a model card: what it was trained on, how, and how well it does
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import mmformer.generation  # the specs' names have to be known to YAML
import mmformer.models  # noqa: F401
from mmformer import resources
from mmformer.config import parse, read_yaml, to_data
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.sound import AudioTransformSpec
from mmformer.data.tar import file_sha256
from mmformer.errors import InputError, foreign
from mmformer.files import whole_folder
from mmformer.generation.generation import GenerationSpec
from mmformer.models.head import ClassHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec

VERSION = 1


@dataclass(frozen=True)
class Transforms:
    """What turns a user's values into the model's, and its answers into words.

    Attributes:
        image: for pictures; None when the model reads none.
        audio: for sounds; None when the model reads none.
        classes: head -> the names of its classes, in order.
        several: heads of whose classes several may be true at once: each is told by itself, and their probabilities
            do not add up to 1.
        generation: how its decoders write where nobody says; None: the likeliest ids, as long as a text can be.
    """

    image: ImageTransformSpec | None = None
    audio: AudioTransformSpec | None = None
    classes: dict[str, list[str]] = field(default_factory=dict)
    several: tuple[str, ...] = ()
    generation: GenerationSpec | None = None


def save_bundle(
    folder: Path, model: Model, transforms: Transforms, card: str, beside: Mapping[str, bytes] | None = None
) -> None:
    """Write a bundle; one that is there already is replaced only when the new one is whole.

    Args:
        beside: further files, by their paths in the bundle.
    """
    with whole_folder(folder) as partial:
        spec = _with_files(model.spec, partial)
        files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        state = {name: _float32(value.detach().cpu()).contiguous() for name, value in model.state_dict().items()}
        _save_state(state, partial / "model.safetensors")
        head = {"format": "mmformer", "version": VERSION, "files": files}
        _write_yaml(partial / "model.yaml", {**head, "model": to_data(spec)})
        _write_yaml(partial / "transforms.yaml", to_data(transforms))
        (partial / "README.md").write_text(card, encoding="utf-8")
        for name, content in (beside or {}).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)


def load_bundle(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Model, Transforms]:
    """The model of a bundle, in evaluation mode on a device, and its transforms.

    Raises:
        InputError: no such folder, a file that is missing or damaged, a newer version, or parameters that do not fit.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder}: a bundle is a folder, but this is a file.")
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such bundle; it is the folder bundle/ that a run's output ends with.")
    for name in ("model.yaml", "model.safetensors", "transforms.yaml"):
        if not (folder / name).is_file():
            inside = folder / "bundle"
            hint = f" Did you mean {inside}?" if (inside / name).is_file() else ""
            raise InputError(f"{folder}: this is no bundle, for it has no {name}.{hint}")
    spec = read_spec(folder)
    transforms = read_transforms(folder)
    _check_classes(transforms, spec, folder)
    state = read_state(folder / "model.safetensors", device)
    check_depth(spec, state, str(folder))
    with foreign(folder), torch.device("meta"):
        model = spec.build()
    check_state(state, model.state_dict(), str(folder / "model.safetensors"))
    model.load_state_dict({name: _float32(value) for name, value in state.items()}, assign=True)
    return model.eval(), transforms


def _save_state(state: dict[str, torch.Tensor], file: Path) -> None:
    """Write parameters.

    Raises:
        OSError: the disk refuses: it is full, say.
    """
    try:
        save_file(state, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_state(file: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The parameters in a safetensors file, by name.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return load_file(file, device=str(device))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged, it cannot be read: {error}.") from error


def check_depth(spec: ModelSpec, names: Collection[str], where: str) -> None:
    """Refuse a model of more layers than there are parameters, before time and memory are spent on them.

    Raises:
        InputError: it has.
    """
    layers = sum(stack.distinct for stack in spec.stacks.values())
    if layers > len(names):
        raise InputError(
            f"{where}: the model has {layers:,} layers, but of parameters only {len(names):,}: they do not belong "
            f"together."
        )


def check_state(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse parameters that do not fit a model's, showing both sides.

    Raises:
        InputError: missing, unknown or differently shaped parameters.
    """
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing: {name} {wanted[name]}" for name in wanted.keys() - found.keys()]
    problems += [f"unknown: {name} {found[name]}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name}: the model has {wanted[name]}, the file {found[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:8])
        raise InputError(f"{where}: {len(problems)} parameters do not fit the model:\n  {shown}")


def read_transforms(folder: Path) -> Transforms:
    """What prepares the pictures and sounds of a bundle.

    Raises:
        InputError: ``transforms.yaml`` is not a bundle's.
    """
    file = folder / "transforms.yaml"
    with foreign(file):
        return parse(Transforms, read_yaml(file), str(file))


def read_spec(folder: Path) -> ModelSpec:
    """What the model of a bundle is made of; its files are those in the bundle.

    Raises:
        InputError: ``model.yaml`` is not a bundle's, or of a newer version, or a file is another than the model's.
    """
    where = folder / "model.yaml"
    data = read_yaml(where)
    version = data.get("version")
    if data.get("format") != "mmformer" or not isinstance(version, int):
        raise InputError(f"{where}: this is not the model.yaml of a bundle; format, version and model are expected.")
    if version > VERSION:
        raise InputError(
            f"{where}: the bundle has format version {version}, but this mmformer reads up to {VERSION}: upgrade it."
        )
    if not isinstance(data.get("model"), dict):
        raise InputError(f"{where}: model must be a mapping, but is {data.get('model')!r:.80}.")
    with foreign(where):
        spec = parse(ModelSpec, data["model"], str(where))
    files = data.get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{where}: files must be a mapping of names to hashes, but is {files!r:.80}.")

    def placed(name: str, file: str) -> str:
        # A bundle names files beside it; anything else could reach out of it.
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(f"{where}: '{file}', which {name} reads, is not a file of the bundle {folder}.")
        found, expected = file_sha256(folder / file), files.get(file)
        if expected is not None and found != expected:
            raise InputError(
                f"{folder / file}: this is another vocabulary than the one that the model was trained with, of which "
                f"{where.name} has the SHA-256 {expected!s:.12}…, not {found:.12}…: copy the bundle again, as a whole."
            )
        return str(folder / file)

    return _renamed(spec, placed)


def _check_classes(transforms: Transforms, spec: ModelSpec, folder: Path) -> None:
    """Refuse names that are not as many as the classes of the head that they are for."""
    if unknown := [name for name in transforms.several if name not in transforms.classes]:
        raise InputError(f"{folder / 'transforms.yaml'}: several names {unknown[0]}, but classes has no such head.")
    for name, names in transforms.classes.items():
        head = spec.heads.get(name)
        number = head.classes if isinstance(head, ClassHeadSpec) else 0
        if len(names) != number:
            raise InputError(
                f"{folder / 'transforms.yaml'}: classes.{name} has {len(names)} names, but model.yaml has "
                + (f"{number} classes for this head." if number else "no classification head of this name.")
            )


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _with_files(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec with its files copied into a folder, equal ones once, and named by what they are called there."""
    copied: dict[bytes, str] = {}

    def copy(part: str, file: str) -> str:
        content = resources.find(file).read_bytes()
        if content not in copied:
            copied[content] = f"{part}{Path(file).suffix}"
            (folder / copied[content]).write_bytes(content)
        return copied[content]

    return _renamed(spec, copy)


def _renamed(spec: ModelSpec, rename: Callable[[str, str], str]) -> ModelSpec:
    """The spec with every file that its tokenizers name renamed, given the name of the encoder or decoder."""

    def tokenizer(name: str, old: TokenizerSpec) -> Any:
        named = {attribute: getattr(old, attribute) for attribute in old.files}
        files = {attribute: rename(name, file) for attribute, file in named.items() if file is not None}
        return dataclasses.replace(old, **files) if files else old

    encoders = {
        name: dataclasses.replace(part, tokenizer=tokenizer(name, part.tokenizer))
        for name, part in spec.encoders.items()
    }
    decoders = {
        name: dataclasses.replace(part, tokenizer=tokenizer(name, part.tokenizer))
        for name, part in spec.decoders.items()
    }
    return dataclasses.replace(spec, encoders=encoders, decoders=decoders)


def _write_yaml(path: Path, data: object) -> None:
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
