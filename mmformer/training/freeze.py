"""Parameters that do not train, chosen by patterns of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mmformer.errors import InputError
from mmformer.names import matching

LISTED = "; parameters.tsv in a run's output has them all"


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
        for name in matching("freeze", parameters, pattern, more=LISTED):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"freeze: {', '.join(patterns)} leaves nothing of the model to train: freeze less.")


class Thaw:
    """Parameters that are frozen at first, each until its own update.

    Until then their gradients are dropped, before they are clipped or an optimizer sees them; they are computed all the
    same, so that a run costs from its beginning what it costs at its end.

    Attributes:
        starts: parameter -> the number of updates after which it trains.
    """

    def __init__(self, model: nn.Module, patterns: Mapping[str, int]) -> None:
        """Where several patterns fit a parameter, the latest counts.

        Raises:
            InputError: a pattern that no parameter which trains matches, or nothing that trains from the beginning.
        """
        parameters = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        self.starts: dict[str, int] = {}
        for pattern, updates in patterns.items():
            for name in matching("thaw", parameters, pattern, more=LISTED):
                self.starts[name] = max(updates, self.starts.get(name, 0))
        if patterns and self.starts.keys() == parameters.keys():
            raise InputError(
                f"thaw: {', '.join(patterns)} leaves nothing to train in the first {min(self.starts.values())} "
                f"updates: name less."
            )

    def drop_gradients(self, model: nn.Module, update: int) -> None:
        """Those of what does not train in an update, 0 the first."""
        for name, start in self.starts.items():
            if update < start:
                model.get_parameter(name).grad = None
