"""Files by folder, name or pattern: ``set-{000..012}.tar``, ``{train,val}/*.tar``."""

from __future__ import annotations

import glob
from pathlib import Path

from mmformer.data.opening import expand
from mmformer.data.remote import find_urls, is_pattern, is_remote, join_url
from mmformer.errors import InputError, nearest


def find_places(given: str, suffix: str) -> list[str]:
    """The files that a word names, here or elsewhere: paths, or URLs; one of a folder stands for those in it.

    Raises:
        InputError: no such file here, or a pattern that matches nothing, or a URL that cannot be listed.
    """
    if not is_remote(given):
        return [str(path) for path in find_files(given, suffix)]
    urls: dict[str, None] = {}
    for name in expand(given):
        pattern = name if name.endswith(suffix) or is_pattern(name) else join_url(name, f"*{suffix}")
        matches = find_urls(pattern)
        if not matches:
            raise InputError(f"The pattern '{pattern}' matches nothing.")
        urls |= dict.fromkeys(matches)
    return list(urls)


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
            if is_remote(name):
                raise InputError(
                    f"{name} is elsewhere, and a set is built of files that are here: download it, or have tars "
                    f"indexed where they are (mmformer shards index {name} --output DIR)."
                )
            parent = Path(name).parent
            known = [other.name for other in parent.iterdir()] if parent.is_dir() else []
            raise InputError(f"There is no file or folder {name}.{nearest(Path(name).name, known)}")
    if not files:
        raise InputError(f"The pattern '{given}' matches folders only.")
    return list(files)
