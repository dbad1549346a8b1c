"""Files by folder, name or pattern: ``set-{000..012}.tar``, ``{train,val}/*.tar``."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from mmformer.errors import InputError, nearest

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def braces(pattern: str) -> Iterator[str]:
    """What a shell makes of ``{a,b}`` and ``{000..012}``, in its order; numbers are as wide as they are written."""
    found = next((match for match in _BRACES.finditer(pattern) if "," in match[1] or _RANGE.fullmatch(match[1])), None)
    if found is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = max(map(len, numbers.groups())) if any(n.startswith("0") for n in numbers.groups()) else 0
        step = 1 if first <= last else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from braces(pattern[: found.start()] + choice + pattern[found.end() :])


def find_files(given: str, suffix: str) -> list[Path]:
    """The files that a word names: one file, those of a folder that end so (and below it), or those of a pattern.

    Files that braces name have to be there; ``*`` gives those that are. Each comes once.

    Raises:
        InputError: no such file, or a folder or pattern without any.
    """
    path = Path(given)
    if path.is_dir():
        found = [file for file in sorted(path.rglob(f"*{suffix}")) if file.is_file() and not file.name.startswith(".")]
        if not found:
            raise InputError(f"{given}: there is no {suffix} file in this folder or below it.")
        return found
    files: dict[Path, None] = {}
    for name in [given] if path.is_file() else braces(given):
        if glob.has_magic(name) and not Path(name).is_file():
            # pathlib's own patterns must be relative
            matches = sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207
            if not matches:
                raise InputError(f"The pattern '{name}' matches nothing.")
            files |= dict.fromkeys(match for match in matches if match.is_file())
        elif Path(name).is_file():
            files[Path(name)] = None
        else:
            parent = Path(name).parent
            known = [other.name for other in parent.iterdir()] if parent.is_dir() else []
            raise InputError(f"There is no file or folder {name}.{nearest(Path(name).name, known)}")
    if not files:
        raise InputError(f"The pattern '{given}' matches folders only.")
    return list(files)
