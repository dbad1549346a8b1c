"""Files by folder, name or pattern: ``set-{000..012}.tar``, ``{train,val}/*.tar``."""

from __future__ import annotations

import glob
from pathlib import Path

from mmformer.data.opening import expand
from mmformer.errors import InputError, nearest


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
    for name in [given] if path.is_file() else expand(given):
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
