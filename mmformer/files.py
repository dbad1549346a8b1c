"""Writing so that a file or folder is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""How names end of what is not written to its end."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write in, which takes its name, in place of one that has it, only when the block ends well.

    Everything in it is on the disk before that. Where the block fails, nothing of it is left. Killed in between, what
    stood there stands there still, beside a ``.partial`` or ``.old`` that the next call removes.
    """
    partial, old = partial_of(folder), folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # killed between the two renamings below
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a disk that is full, room is what is needed
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder; killed in between, what is left of it has not its name any more, but an ``.old`` behind it."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    shutil.rmtree(old)


def partial_of(folder: Path) -> Path:
    """What a folder is called while it is written."""
    return folder.with_name(folder.name + PARTIAL)


def tidy(folder: Path) -> None:
    """Remove what was being written in a folder when a process was killed, and undo what it had begun to replace."""
    for left in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for left in folder.glob("*.old"):
        if left.with_suffix("").exists():
            shutil.rmtree(left)
        else:
            left.rename(left.with_suffix(""))


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, then rename it: a reader sees the old file or the whole new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's files are for their owner alone
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before anything that comes after counts."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
