"""What a folder has to hold, written into it last: a folder that is otherwise now is told from one that is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple, TypeVar

from mmformer.errors import InputError
from mmformer.files import sync, write_whole

T = TypeVar("T")

SEAL = "whole.json"
"""The file that names all others of a folder, with their sizes and hashes."""

PATIENCE = 10.0
"""Seconds for which what cannot be read is tried again: file servers lose their clients for a moment."""

_PAUSE = 0.5
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


def damage(folder: Path, by_size: bool = False) -> str | None:
    """What is wrong with a sealed folder; None where it holds what was written.

    Args:
        by_size: look at no more than the sizes of its files. Otherwise they are read, some at once.

    Raises:
        InputError: something in it cannot be read, which says nothing of what it holds.
    """
    try:
        told = persistently(Path.read_bytes, folder / SEAL)
    except FileNotFoundError:
        return f"{SEAL}, which is written last, is not there"
    try:
        table = json.loads(told)["files"]
        expected = {str(name): Content(int(entry["size"]), str(entry["sha256"])) for name, entry in table.items()}
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return f"{SEAL} is not what was written"
    if not expected:
        return f"{SEAL} names no file"

    def wrong_size(name: str) -> str | None:
        try:
            size = persistently(Path.stat, folder / name).st_size
        except (FileNotFoundError, ValueError):  # or no name that a file may have
            return f"{name} is not there"
        written = expected[name].size
        return None if size == written else f"{name} has {size:,} bytes, but {written:,} were written"

    def wrong_content(name: str) -> str | None:
        same = persistently(content_of, folder / name) == expected[name]
        return None if same else f"{name} is not what was written: its sha256 is another"

    found = next(filter(None, map(wrong_size, expected)), None)
    if found is not None or by_size:
        return found
    # Hashes of large blocks are made outside of Python's lock: other processes' parts need not wait for each other.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return next(filter(None, pool.map(wrong_content, expected)), None)


def persistently(read: Callable[[Path], T], path: Path) -> T:
    """What ``read`` makes of a path, tried again for ``PATIENCE`` where the system fails to say.

    Raises:
        FileNotFoundError: there is no such path.
        InputError: it cannot be read, which may pass: a server that is away, too many open files, a right to read.
    """
    deadline = monotonic() + PATIENCE
    while True:
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if monotonic() >= deadline:
                raise InputError(
                    f"{path}: cannot be read: {error.strerror}: nothing was changed. Start the run again when it can "
                    f"be; where it never will, rename the checkpoint's folder to end in .damaged."
                ) from error
        sleep(_PAUSE)
