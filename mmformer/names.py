"""Parts of a model chosen by patterns of their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from mmformer.errors import InputError, nearest


def matching(field: str, names: Collection[str], pattern: str, kind: str = "parameter", more: str = "") -> list[str]:
    """The names that a pattern fits, upper and lower case told apart; ``*`` stands for anything, dots too.

    Args:
        field: of the run, or of the command, that asked for it.
        kind: what the names are of.
        more: where to find them all.

    Raises:
        InputError: it fits none.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        first = f" The first is called {next(iter(names))}{more}." if names else ""
        raise InputError(
            f"{field}: no {kind} of the model has a name like '{pattern}'.{nearest(pattern, _choices(names))}{first}"
        )
    return found


def whole_parts(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Names, several that are all there is of a part as that part: ``stacks.text.*``.

    Args:
        others: names that are not meant.
    """
    found: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        starts = (".".join(pieces[:size]) + "." for size in range(2, len(pieces)))
        whole = next((start for start in starts if not any(other.startswith(start) for other in others)), name)
        alone = whole == name or sum(other.startswith(whole) for other in names) == 1
        found[name if alone else f"{whole}*"] = None
    return list(found)


def _choices(names: Collection[str]) -> list[str]:
    """What could have been meant: whole names, and all that begins as they do."""
    parts = [name.split(".") for name in names]
    starts = {".".join([*part[:size], "*"]) for part in parts for size in range(1, len(part))}
    return [*sorted(starts), *(".".join(part) for part in parts)]
