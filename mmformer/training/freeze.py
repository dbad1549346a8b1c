"""Parameters that do not train, chosen by patterns of their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from mmformer.errors import InputError, nearest


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the parameters whose names match a pattern out of training: no gradient, no optimizer state, no decay.

    Their values stay as they are, bit for bit. Whatever else is random in a frozen part, dropout say, stays so.

    Args:
        patterns: such as ``encoders.image.*`` or ``*.bias``; ``*`` stands for anything, dots too. A parameter that two
            modules share is frozen under either name.

    Raises:
        InputError: a pattern that no parameter matches, or nothing that is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        for name in matching("freeze", parameters, pattern):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"freeze: {', '.join(patterns)} leaves nothing of the model to train: freeze less.")


def matching(field: str, names: Collection[str], pattern: str) -> list[str]:
    """The names that a pattern fits, upper and lower case told apart.

    Raises:
        InputError: it fits none; ``field`` of the run asked for it.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise InputError(
            f"{field}: no parameter of the model has a name like '{pattern}'.{nearest(pattern, _choices(names))} "
            f"The first is called {next(iter(names))}; parameters.tsv in a run's output has them all."
        )
    return found


def _choices(names: Collection[str]) -> list[str]:
    """What could have been meant: whole names, and all that begins as they do."""
    parts = [name.split(".") for name in names]
    starts = {".".join([*part[:size], "*"]) for part in parts for size in range(1, len(part))}
    return [*sorted(starts), *(".".join(part) for part in parts)]
