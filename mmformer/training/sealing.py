"""What a folder has to hold, written into it last: a folder that is otherwise now is told from one that is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mmformer.files import sync, write_whole

SEAL = "whole.json"
"""The file that names all others of a folder, with their sizes and hashes."""

_BLOCK = 1 << 22


class Content(NamedTuple):
    """What a file holds."""

    size: int  # bytes
    sha256: str


def content_of(path: Path) -> Content:
    """A file's content, after the disk has it."""
    sync(path)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Content(size, digest.hexdigest())


def seal(folder: Path, contents: Mapping[str, Content]) -> None:
    """Write down what a folder's files hold, by their paths in it; they are on the disk already."""
    table = {name: content._asdict() for name, content in sorted(contents.items())}
    write_whole(folder / SEAL, json.dumps({"files": table}, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None where it holds what was written."""
    try:
        table = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        expected = {str(name): Content(int(entry["size"]), str(entry["sha256"])) for name, entry in table.items()}
    except OSError:
        return f"{SEAL}, which is written last, is not there"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{SEAL} is not what was written"
    for name, content in expected.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != content.size:
                return f"{name} has {size:,} bytes, but {content.size:,} were written"
            if content_of(path) != content:
                return f"{name} is not what was written: its sha256 is another"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None if expected else f"{SEAL} names no file"
