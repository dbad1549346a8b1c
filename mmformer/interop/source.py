"""Where models from elsewhere are: folders, files, names on the hub; and which family reads them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmformer.errors import InputError, nearest_file
from mmformer.interop import families
from mmformer.interop.checkpoint import State
from mmformer.interop.family import Family, Library
from mmformer.interop.pictures import PictureReading
from mmformer.interop.vocabularies import FoundVocabulary

WANTED = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.spm", "*.gz", "*.jinja"]
"""Files of a model on the hub that are copied; not those in folders inside it, which other programs read."""


class Found(NamedTuple):
    """A model as it was found."""

    family: Family
    layout: str
    config: Mapping[str, Any]
    state: State
    folder: Path | None  # with what goes with it: vocabularies, preprocessing
    where: str  # of the config, for messages
    vocabulary: FoundVocabulary | None = None  # where no file beside it has one
    pictures: PictureReading | None = None  # where the config itself says how they are prepared

    @property
    def said(self) -> dict[str, Any]:
        """The config, with what the weights show besides."""
        return self.family.seen(self.config, self.state)


def families_of(library: Library) -> list[Family]:
    """A library's families: the constants that are adapters in the modules of ``families``."""
    found: list[Family] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(families.__path__)):
        values = vars(importlib.import_module(f"{families.__name__}.{module}")).values()
        found += [value for value in values if isinstance(value, Family) and value.library == library]
    return found


def hub_folder(name: str) -> Path:
    """A folder of this name; otherwise a copy of what the hub has under it.

    Raises:
        InputError: neither; with what is missing.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(f"{name} is a file, but a folder is expected.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"There is no folder {name}. Names on the hub are owner/name, such as openai-community/gpt2."
            f"{nearest_file(name)}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"There is no folder {name}; to look for it on the hub, pip install 'mmformer[hub]', or copy it here."
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's own and the network's, of many kinds
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"There is no folder {name}, and the hub did not give it: {first} Copy it here.") from error
