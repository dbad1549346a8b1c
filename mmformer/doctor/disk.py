"""The folder that a run writes to: whether it can be written, how fast, and whether it keeps its word."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from mmformer.doctor.finding import Finding
from mmformer.files import sync

_BYTES = 64 * 2**20
_SLOW = 20.0  # MiB/s
_ROOM = 10 * 2**30


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: a run makes what is missing."""
    folder = folder.absolute()
    return folder if folder.exists() or folder == folder.parent else existing(folder.parent)


def writes(folder: Path) -> list[Finding]:
    """Write 64 MiB there, have the disk take it, rename it and read it again; nothing of it stays."""
    place = existing(folder)
    if not place.is_dir():
        return [Finding("output folder", "fault", f"{place} is a file", "Name another with --output.")]
    try:
        with tempfile.TemporaryDirectory(prefix=".mmformer-doctor-", dir=place) as made:
            written, read = _measure(Path(made))
    except OSError as error:
        return [Finding("output folder", "fault", f"{place}: {error.strerror}", "Name another with --output.")]
    free = shutil.disk_usage(place).free
    said = f"{place}: writes {written:.0f} MiB/s with fsync, reads {read:.0f} MiB/s"
    slow = written < _SLOW
    fix = "A checkpoint of 1 GiB takes a minute and more here: name a faster disk with --output." if slow else ""
    room = f"{free / 2**30:.0f} GiB free"
    full = "A checkpoint has three times the weights in it: make room, or name another with --output."
    return [
        Finding("output folder", "warning" if slow else "ok", said, fix),
        Finding("room", "ok" if free >= _ROOM else "warning", room, "" if free >= _ROOM else full),
    ]


def _measure(folder: Path) -> tuple[float, float]:
    """MiB/s written and read.

    Raises:
        OSError: the disk refuses, or gives back something else.
    """
    data = os.urandom(2**20) * (_BYTES // 2**20)
    part, whole = folder / "part", folder / "whole"
    began = time.monotonic()
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(whole)
    sync(folder)
    written = time.monotonic()
    same = whole.read_bytes() == data
    read = time.monotonic()
    if not same:
        raise OSError(5, "what was read is not what was written", str(whole))
    return _BYTES / 2**20 / max(written - began, 1e-9), _BYTES / 2**20 / max(read - written, 1e-9)
