"""Weights in a file that its class does not read: they go along with a bundle, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mmformer.bundle import read_state
from mmformer.interop.checkpoint import State
from mmformer.interop.origin import FOLDER

FILE = "unread.safetensors"
"""In a bundle, beside the other files that came with the model."""


def parted(state: Mapping[str, Tensor], patterns: Sequence[str]) -> tuple[State, State]:
    """What a class reads, and what it does not: the names that fit a pattern."""
    unread = {name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)}
    read = {name: value for name, value in state.items() if name not in unread}
    return read, {name: state[name] for name in unread}


def kept(unread: State) -> dict[str, bytes]:
    """The file that a bundle has of them, by its path; none where there are none."""
    return {f"{FOLDER}/{FILE}": save({name: value.contiguous() for name, value in unread.items()})} if unread else {}


def given_back(bundle: Path) -> State:
    """What a bundle has of them.

    Raises:
        InputError: the file is damaged.
    """
    file = bundle / FOLDER / FILE
    return read_state(file) if file.is_file() else {}
