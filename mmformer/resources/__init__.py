"""The files that mmformer brings: run files, models, vocabularies, class lists, and the beginnings of projects.

In a checkout ``configs``, ``tokenizers`` and ``data`` here are links to the folders of those names at its root; a wheel
has what they lead to. A name such as ``configs/runs/emoji_quickstart.yaml`` means the same everywhere then.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def find(path: str | os.PathLike[str]) -> Path:
    """A file: the user's own where there is one of this name, otherwise the one that mmformer brings, if any."""
    own = Path(path)
    if own.is_absolute() or ".." in own.parts or _is_file(own):
        return own
    return FOLDER / own if _is_file(FOLDER / own) else own


def where_to_get(path: str | os.PathLike[str]) -> str:
    """What to say of a folder of samples that is not there, but is in mmformer's repository; of others nothing."""
    own = Path(path)
    if own.is_absolute() or len(own.parts) < 2 or ".." in own.parts or not (FOLDER / own).is_dir():
        return ""
    return (
        f" mmformer is installed without samples: {own} is a folder of its repository. Copy it from a clone, or call "
        "the command in one."
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file's
        return False
