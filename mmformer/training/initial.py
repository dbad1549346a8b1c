"""Weights to begin with, from a bundle or a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from mmformer.bundle import check_state, read_spec, read_state
from mmformer.errors import InputError
from mmformer.models.model import Model, ModelSpec
from mmformer.names import matching
from mmformer.nn.position import Position
from mmformer.spec import require
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
    """

    path: str
    parameters: tuple[str, ...] = ("*",)
    resize: bool = False

    def __post_init__(self) -> None:
        require(len(self.parameters) >= 1, self, "parameters", "at least one pattern")


def load_initial(model: Model, spec: InitialSpec) -> frozenset[str]:
    """Give a model the weights to begin with; the names of what it was given.

    Raises:
        InputError: no such file, or one that cannot be read; a pattern that matches nothing of the model; or parameters
            that the file lacks, or that the model lacks, or whose shapes differ; positions of other sizes, where they
            are not to be resized; or a bundle's word embeddings for another vocabulary.
    """
    path = Path(spec.path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"initial.path: there is no file {file}: name a bundle, or a safetensors file.")
    own, state = model.state_dict(), read_state(file)
    wanted = {
        name: own[name]
        for pattern in spec.parameters
        for name in matching("initial.parameters", own, pattern, more=LISTED)
    }
    found = {name: state[name] for name in state if any(fnmatchcase(name, pattern) for pattern in spec.parameters)}
    theirs = read_spec(path) if (path / "model.yaml").is_file() else None
    if theirs is not None:
        found |= _resized(path, theirs, model, found, spec.resize)
    elif spec.resize:
        raise InputError(
            f"initial.resize: {file} does not say for which sizes its positions were learned: name a bundle, or set it "
            f"to false."
        )
    check_state(found, wanted, f"initial.path: {file}")
    if theirs is not None:
        _check_vocabularies(path, theirs, model.spec, found)
    model.load_state_dict(found, strict=False)
    return frozenset(found)


def _resized(
    bundle: Path, theirs: ModelSpec, model: Model, taken: Mapping[str, Tensor], allowed: bool
) -> dict[str, Tensor]:
    """The tables of positions among what is taken that were learned for other sizes, for the model's."""
    tables: dict[str, Tensor] = {}
    for name in model.spec.stacks.keys() & theirs.stacks.keys():
        key, position = f"stacks.{name}.position.weight", model.get_submodule(f"stacks.{name}.position")
        if key not in taken or not isinstance(position, Position):
            continue
        table = position.resized(taken[key], theirs.stacks[name].position)
        if table is None or torch.equal(table, taken[key]):
            continue
        if not allowed:
            raise InputError(
                f"initial.path: {bundle} learned {key} as {theirs.stacks[name].position}, but the model has "
                f"{model.spec.stacks[name].position}: set initial.resize to true, or give both the same sizes."
            )
        tables[key] = table
    return tables


def _check_vocabularies(bundle: Path, theirs: ModelSpec, ours: ModelSpec, taken: Collection[str]) -> None:
    """Refuse rows that were learned for other pieces: there may be as many, and then the shapes do not tell."""
    for group in ("encoders", "decoders"):
        for name, part in getattr(ours, group).items():
            where = f"{group}.{name}.tokenizer"
            if not isinstance(part.tokenizer, TextTokensSpec) or f"{where}.weight" not in taken:
                continue
            before = getattr(theirs, group)[name].tokenizer
            other, own = before.vocabulary, part.tokenizer.vocabulary
            if before.words().fingerprint != part.tokenizer.words().fingerprint:
                raise InputError(
                    f"initial.path: {bundle} was trained with another vocabulary than {own}: set "
                    f"model.{where}.vocabulary to {other}, or leave {where}.weight out of initial.parameters."
                )
