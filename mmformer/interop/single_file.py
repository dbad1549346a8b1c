"""A bundle as one safetensors file: its weights, by our own names, and its other files in the file's metadata."""

from __future__ import annotations

import base64
import json
from pathlib import Path, PurePosixPath

from safetensors import safe_open
from safetensors.torch import save_file

from mmformer.bundle import load_bundle, read_state
from mmformer.errors import InputError
from mmformer.files import whole_folder
from mmformer.interop.checkpoint import metadata_of

KEY = "mmformer"
WEIGHTS = "model.safetensors"


def is_bundle(file: Path) -> bool:
    """Whether a safetensors file is a bundle, by its metadata."""
    return file.suffix == ".safetensors" and KEY in metadata_of(file)


def write_file(bundle: Path, file: Path) -> None:
    """Write a bundle as one file.

    Raises:
        InputError: it is no bundle, or one that is damaged.
    """
    load_bundle(bundle)  # nothing that does not open goes out
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != WEIGHTS)
    files = {path.relative_to(bundle).as_posix(): base64.b64encode(path.read_bytes()).decode() for path in paths}
    partial = file.with_name(f"{file.name}.partial")
    save_file(read_state(bundle / WEIGHTS), partial, {"format": "pt", KEY: json.dumps(files)})
    partial.replace(file)


def read_file(file: Path, bundle: Path) -> None:
    """Make a bundle of such a file again; one that was there is replaced only by one that opens.

    Raises:
        InputError: what it holds is no bundle.
    """
    try:
        files = {name: base64.b64decode(content) for name, content in json.loads(metadata_of(file)[KEY]).items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{file} says that it is a bundle, but its metadata cannot be read: {error}.") from error
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or path.name == WEIGHTS:
            raise InputError(f"{file} has a file {name!r} in its metadata, which is none of a bundle.")
    with whole_folder(bundle) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        save_file(state, partial / WEIGHTS, {"format": "pt"})
        load_bundle(partial)
