"""The names of classes and the prompts for them: of a user's files, or of well-known sets, which ship with mmformer.

``standard/NAME.classes.txt`` and ``standard/NAME.templates.txt`` say in their first lines, which begin with #, where
they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmformer import resources
from mmformer.data.folders import tree_classes
from mmformer.errors import InputError, nearest

FOLDER = Path(__file__).parent / "standard"


def standard_sets() -> list[str]:
    """The sets whose classes and prompts ship with mmformer, such as ``imagenet``."""
    return sorted(path.name.removesuffix(".classes.txt") for path in FOLDER.glob("*.classes.txt"))


def read_classes(name: str | Path) -> list[str]:
    """Class names, in the order of the labels.

    Args:
        name: a standard set, a file with a name on each line, or a folder with a folder for each class, or
            with such a one for each split.

    Raises:
        InputError: no such file, no names, or a name twice.
    """
    if name in standard_sets():
        return _standard(f"{name}.classes.txt")  # ImageNet's have two names twice
    path = resources.find(name)
    if path.is_dir() and (classes := tree_classes(path)):
        return [name.replace("_", " ") for name in classes]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        known, hint = ", ".join(standard_sets()), nearest(str(name), standard_sets())
        raise InputError(
            f"{path}: the class names cannot be read: {reason}. Name a file, or one of {known}.{hint}"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: there are no class names in it; write one a line.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the class '{twice[0]}' is there more than once.")
    return names


def read_templates(templates: Sequence[str] | None, classes: str) -> tuple[str, ...]:
    """Prompt templates, with those of standard sets in place of the sets' names.

    Args:
        templates: prompts with {} for the class, and names of standard sets; None: those of the set that the classes
            are of, or the class alone where it is a user's.
    """
    known = standard_sets()
    if templates is None:
        templates = (classes,) if classes in known else ("{}",)
    if isinstance(templates, str):
        raise InputError(f"Prompt templates are a list of strings, but are the string {templates!r}: write it in [].")
    read = (_standard(f"{item}.templates.txt") if item in known else [item] for item in templates)
    return tuple(template for items in read for template in items)


def _standard(file: str) -> list[str]:
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]
