"""Weights in files: safetensors, whole or in shards with an index, and PyTorch's own, read as data alone."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmformer.bundle import read_state
from mmformer.errors import InputError, describe_bytes

State = dict[str, Tensor]

_MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What PyTorch's reader raises on damaged files (found by fuzzing it: tests/hostile)."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        InputError: it is not there, or is none.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise InputError(f"{file} must hold a mapping, but holds {type(data).__name__}.")
    return data


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """A mapping, as transformers writes its configs."""
    file.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_weights(folder: Path, names: tuple[str, ...]) -> State:
    """The tensors in the first of some files that a folder has; a name that ends in .index.json lists shards.

    Raises:
        InputError: it has none of them, or one that is damaged.
    """
    for name in names:
        if not (folder / name).is_file():
            continue
        if not name.endswith(".index.json"):
            return read_tensors(folder / name)
        return _shards(folder / name)
    found = sorted(path.name for path in folder.iterdir())
    shown = f"{', '.join(found[:8])}{' …' if len(found) > 8 else ''}" if found else "nothing"
    raise InputError(f"{folder} has no weights: {' or '.join(names)} is expected, but there is {shown}.")


def read_tensors(file: Path) -> State:
    """A file's tensors by name, in the precision that they are kept in.

    Raises:
        InputError: it is damaged, or holds anything but tensors.
    """
    if file.suffix == ".safetensors":
        return read_state(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells its developers of pickles that it does not write
            found = _load(file)
    except (pickle.UnpicklingError, EOFError, OSError, struct.error, *_MALFORMED) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        with file.open("rb") as opened:
            begins = describe_bytes(opened.read(64))
        raise InputError(
            f"{file} cannot be read as tensors alone ({begins}): {first} Code in such files is never run; save the "
            f"weights as safetensors where they can be trusted."
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)] if isinstance(state, dict) else [""]
    if wrong:
        raise InputError(f"{file} must hold a mapping of names to tensors, but {wrong[0] or 'it'} is none.")
    return dict(state)


def _load(file: Path) -> Any:
    """What PyTorch wrote, weights alone: a pickle could run whatever it likes."""
    with file.open("rb") as opened:
        if opened.read(4) == b"PK\3\4":
            return torch.load(file, map_location="cpu", weights_only=True)
        # Older files are one pickle, whose texts say how long they are: a plain file would make room for all of it.
        with mmap(opened.fileno(), 0, access=ACCESS_READ) as held:
            return torch.load(held, map_location="cpu", weights_only=True)  # type: ignore[arg-type]


def metadata_of(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged, it cannot be read: {error}.") from error


def write_weights(state: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors; those that share memory are written one by one."""
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, file, {"format": "pt"}
    )


def _shards(index: Path) -> State:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise InputError(f"{index} has no weight_map, which says what file each tensor is in.")
    state: State = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(f"{index} names {name}, which is not beside it: the folder is not whole.")
        state |= read_tensors(index.parent / name)
    missing = sorted(set(listed) - set(state))
    if missing:
        raise InputError(f"{index} lists {missing[0]} and {len(missing) - 1} more, but its files have no such tensor.")
    return state
