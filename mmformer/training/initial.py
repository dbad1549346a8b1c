"""Weights to begin with, from a bundle or a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmformer.bundle import check_state, read_spec, read_transforms
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.models.model import Model, ModelSpec
from mmformer.names import matching, whole_parts
from mmformer.nn.position import Position
from mmformer.parallel.allocation import give
from mmformer.spec import require, told
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.freeze import LISTED


@dataclass(frozen=True)
class InitialSpec:
    """Parameters that begin with the weights of another model, by name, instead of with drawn ones.

    Attributes:
        path: a bundle, or a safetensors file.
        parameters: patterns of names, as in ``freeze``, of what is taken. Of those names, file and model must have the
            same, of the same shapes; the rest of the model is drawn, and the rest of the file left alone.
        resize: resize tables of positions that a bundle's model learned for other sizes (of pictures or rows), as ViT
            is tuned at a higher resolution (Dosovitskiy et al. 2020, §3.2). Otherwise they are refused.
        partial: take of those names what file and model have both, of the same shapes and for the same words; the rest
            is drawn, or left in the file. What became of each is printed in any case.
    """

    path: str
    parameters: tuple[str, ...] = ("*",)
    resize: bool = False
    partial: bool = False

    def __post_init__(self) -> None:
        require(len(self.parameters) >= 1, self, "parameters", "at least one pattern")


class Loaded(NamedTuple):
    """What a model begins with."""

    names: frozenset[str]  # the parameters that are given weights
    report: list[str]  # what becomes of all, for people to read
    file: Path | None = None  # with the weights
    tables: Mapping[str, Tensor] = {}  # of positions, which were resized

    def give(self, model: Model) -> None:
        """Give them to a model, which may be spread, one after the other."""
        own, read = model.state_dict(), None if self.file is None else _opened(self.file)
        for name in self.names:
            assert read is not None, "a file has them"
            give(own[name], self.tables[name] if name in self.tables else read.get_tensor(name))


def load_initial(model: Model, spec: InitialSpec) -> Loaded:
    """Give a model the weights to begin with.

    Raises:
        InputError: see ``choose_initial``.
    """
    chosen = choose_initial(model, spec)
    chosen.give(model)
    return chosen


def choose_initial(model: Model, spec: InitialSpec) -> Loaded:
    """Say which weights a model is to begin with; it may have no data yet.

    Raises:
        InputError: no such file, or one that cannot be read; a pattern that matches nothing of the model; or, unless a
            part is enough, parameters that the file lacks, or that the model lacks, or whose shapes differ; positions
            of other sizes, where they are not to be resized; or a bundle's word embeddings for another vocabulary.
    """
    path = Path(spec.path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"initial.path: there is no file {file}: name a bundle, or a safetensors file.")
    own, read = model.state_dict(), _opened(file)
    names: list[str] = read.keys()
    state = {name: torch.empty(read.get_slice(name).get_shape(), device="meta") for name in names}
    named = [matching("initial.parameters", own, pattern, more=LISTED) for pattern in spec.parameters]
    wanted = {name: own[name] for names in named for name in names}
    found = {name: state[name] for name in state if any(fnmatchcase(name, pattern) for pattern in spec.parameters)}
    theirs = read_spec(path) if (path / "model.yaml").is_file() else None
    tables = {} if theirs is None else _resized(theirs, model, found, read.get_tensor)
    if theirs is None and spec.resize:
        raise InputError(
            f"initial.resize: {file} does not say for which sizes its positions were learned: name a bundle, or set it "
            f"to false."
        )
    if spec.resize:
        found |= tables
    elif tables and not spec.partial:
        key = next(iter(tables))
        stack = key.split(".")[1]
        assert theirs is not None, "whose tables they are"
        raise InputError(
            f"initial.path: {path} learned {key} as {theirs.stacks[stack].position}, but the model has "
            f"{model.spec.stacks[stack].position}: set initial.resize to true, or give both the same sizes."
        )
    other_words = {} if theirs is None else _other_words(path, theirs, model.spec, found)
    if spec.partial:
        fits = {name for name in found if name in wanted and found[name].shape == wanted[name].shape}
        unfit = other_words.keys() | (set() if spec.resize else tables.keys())
        found = {name: value for name, value in found.items() if name in fits - unfit}
        if not found:
            raise InputError(f"initial.path: {file} has nothing that initial.parameters names in the model's shapes.")
    else:
        check_state(found, wanted, f"initial.path: {file}")
        if other_words:
            raise InputError(next(iter(other_words.values())))
    report = [f"initial: {len(found)} of the model's {len(own)} parameters begin as in {path}"]
    both = [name for name in tables if name in found]
    report += [f"  resized  {name}: {tuple(state[name].shape)} to {tuple(own[name].shape)}" for name in both]
    report += [f"  drawn    {name}" for name in whole_parts([name for name in own if name not in found], found)]
    report += [f"  not read {name}" for name in whole_parts([name for name in state if name not in found], found)]
    return Loaded(frozenset(found), report, file, tables if spec.resize else {})


def other_transforms(
    spec: InitialSpec, image: ImageTransformSpec | None, audio: AudioTransformSpec | None
) -> list[str]:
    """What to say where pictures or sounds are prepared in another way than for the model that a run begins with."""
    if not (Path(spec.path) / "transforms.yaml").is_file():
        return []
    before, lines = read_transforms(Path(spec.path)), []
    pairs = (("pictures", before.image, image), ("sounds", before.audio, audio))
    for kind, theirs, ours in pairs:
        if None not in (theirs, ours) and theirs != ours:
            lines.append(f"  note: {spec.path} was trained on {kind} by {told(theirs)}, the run has {told(ours)}")
    return lines


def _opened(file: Path) -> Any:
    """A safetensors file whose tensors are read when they are asked for.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged, it cannot be read: {error}.") from error


def _resized(
    theirs: ModelSpec, model: Model, taken: Collection[str], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The tables of positions among what is taken that were learned for other sizes, for the model's."""
    tables: dict[str, Tensor] = {}
    for name in model.spec.stacks.keys() & theirs.stacks.keys():
        key, position = f"stacks.{name}.position.weight", model.get_submodule(f"stacks.{name}.position")
        if key in taken and isinstance(position, Position):
            learned = read(key)
            table = position.resized(learned, theirs.stacks[name].position)
            if table is not None and not torch.equal(table, learned):
                tables[key] = table
    return tables


def _other_words(bundle: Path, theirs: ModelSpec, ours: ModelSpec, taken: Collection[str]) -> dict[str, str]:
    """What has rows that were learned for other pieces, and what to say of it.

    There may be as many of them, and then the shapes do not tell.
    """
    found: dict[str, str] = {}
    for group in ("encoders", "decoders"):
        parts = getattr(theirs, group)
        for name, part in getattr(ours, group).items():
            where = f"{group}.{name}.tokenizer"
            rows = [row for row in _rows(ours, group, name) if row in taken]
            if not isinstance(part.tokenizer, TextTokensSpec) or not rows or name not in parts:
                continue
            before = parts[name].tokenizer
            if before.words().fingerprint != part.tokenizer.words().fingerprint:
                told = f"initial.path: {bundle} was trained with another vocabulary than {part.tokenizer.vocabulary}"
                fix = f"set model.{where}.vocabulary to {before.vocabulary}"
                found |= {row: f"{told}: {fix}, or leave {row} out of initial.parameters." for row in rows}
    return found


def _rows(spec: ModelSpec, group: str, name: str) -> list[str]:
    """What has a row for each piece of a part's vocabulary: its embeddings, and what logits are made by."""
    heads = [key for key, head in spec.heads.items() if head.writes and group == "encoders" and name in head.reads]
    parts = [f"{group}.{name}", *(f"heads.{head}" for head in heads)]
    logits = [f"{part}.{last}" for part in parts for last in ("output.weight", "logit_bias", "bias")]
    return [f"{group}.{name}.tokenizer.weight", *logits]
