"""Weights to begin with, from a bundle or a file."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mmformer.bundle import check_state, read_state
from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.spec import require
from mmformer.training.freeze import matching


@dataclass(frozen=True)
class InitialSpec:
    """Parameters that begin with the weights of another model, by name, instead of with drawn ones.

    Attributes:
        path: a bundle, or a safetensors file.
        parameters: patterns of names, as in ``freeze``, of what is taken. Of those names, file and model must have the
            same, of the same shapes; the rest of the model is drawn, and the rest of the file left alone.
    """

    path: str
    parameters: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        require(len(self.parameters) >= 1, self, "parameters", "at least one pattern")


def load_initial(model: Model, spec: InitialSpec) -> frozenset[str]:
    """Give a model the weights to begin with; the names of what it was given.

    Raises:
        InputError: no such file, or one that cannot be read; a pattern that matches nothing of the model; or parameters
            that the file lacks, or that the model lacks, or whose shapes differ.
    """
    path = Path(spec.path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"initial.path: there is no file {file}: name a bundle, or a safetensors file.")
    own, state = model.state_dict(), read_state(file)
    wanted = {name: own[name] for pattern in spec.parameters for name in matching("initial.parameters", own, pattern)}
    found = {name: state[name] for name in state if any(fnmatchcase(name, pattern) for pattern in spec.parameters)}
    check_state(found, wanted, f"initial.path: {file}")
    model.load_state_dict(found, strict=False)
    return frozenset(found)
