"""What becomes of a model's parameters when its spec changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.names import whole_parts


class Remade(NamedTuple):
    """A parameter that is made of another one."""

    value: Tensor
    how: str  # for people to read


@dataclass
class Report:
    """What became of each parameter, by name.

    Attributes:
        copied: as it was.
        remade: name -> how.
        new: drawn, for the model had none of this name.
        dropped: of the old model alone.
        beside: of the files and the weights that came with it, and that it does not read, what is true no more.
    """

    copied: list[str] = field(default_factory=list)
    remade: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people to read: what was not copied one by one, whole parts together."""
        told = [f"copied   {len(self.copied)} parameters as they are"]
        told += [f"remade   {name}: {how}" for name, how in self.remade.items()]
        told += [f"new      {name}" for name in whole_parts(self.new, [*self.copied, *self.remade])]
        told += [f"dropped  {name}" for name in whole_parts(self.dropped, [*self.copied, *self.remade])]
        told += [f"dropped  {name}, which came with the model" for name in self.beside]
        return told


def transplant(old: Model, new: Model, remade: Mapping[str, Remade]) -> Report:
    """Give a model that was drawn what another one's parameters come to in it.

    Raises:
        InputError: a parameter has another shape, and nothing says what becomes of it.
    """
    before, after, report = old.state_dict(), new.state_dict(), Report()
    for name, value in after.items():
        if name in remade:
            report.remade[name] = remade[name].how
            value.copy_(remade[name].value)
        elif name not in before:
            report.new.append(name)
        elif before[name].shape == value.shape:
            report.copied.append(name)
            value.copy_(before[name])
        else:
            raise InputError(
                f"{name} is {tuple(before[name].shape)} in the model and would be {tuple(value.shape)}, but it cannot "
                f"be resized: leave it out (--drop), or change less."
            )
    report.dropped = [name for name in before if name not in after]
    return report
