"""What every adapter is, and how it is put into a model from outside: linear maps become adapted ones, in place.

The model's own parameters keep their names, and what an adapter adds stands below the map that it adapts
(``….qkv.adapter.…``). Queries, keys and values are rows of one matrix here; an adapter of some of them asks the parts
which rows those are (``Part.roles``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.names import matching
from mmformer.nn.grouped import GroupedLinear
from mmformer.nn.initialisation import Part, Role, Rows, own_stream
from mmformer.spec import family, require


@family
@dataclass(frozen=True)
class AdapterSpec(ABC):
    """What of a model trains, of one whose other weights stay as they are."""

    @abstractmethod
    def attach(self, model: nn.Module, seed: int) -> None:
        """Have it train; what is added draws its first weights by (seed, its name).

        Raises:
            InputError: a pattern that nothing fits, or what it fits cannot be adapted.
        """


class Block(NamedTuple):
    """Rows of a matrix that are adapted as a matrix of their own."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class LinearAdapterSpec(AdapterSpec, ABC):
    """An adapter of linear maps.

    Attributes:
        modules: patterns of their names, such as ``stacks.text.layers.*.mixer.out``; ``*`` stands for anything.
        rows: which rows of what the patterns fit: those that make ``query``, ``key``, ``value``, the ``output`` of a
            mixer or a feed-forward, or all ``inner`` ones. Maps that have none of them are left as they are. None: all
            rows of all maps, each map as one matrix.
    """

    modules: tuple[str, ...] = ("stacks.*",)
    rows: tuple[Role, ...] | None = ("query", "value")

    def __post_init__(self) -> None:
        require(len(self.modules) >= 1, self, "modules", "at least one pattern")
        named = self.rows is None or len(set(self.rows)) == len(self.rows) >= 1
        require(named, self, "rows", "None, or different kinds of rows, at least one")

    @abstractmethod
    def build(self, linear: nn.Linear, blocks: Sequence[Block]) -> Adapter:
        """The adapter of some rows of a linear map, which it may measure, but does not keep."""

    def attach(self, model: nn.Module, seed: int) -> None:
        roles, maps = _roles(model), dict(_maps(model))
        found = [name for pattern in self.modules for name in matching("modules", maps, pattern, "linear map")]
        chosen = {
            name: self._blocks(maps[name].get_parameter("weight").shape[-2], roles.get(name, ()))
            for name in dict.fromkeys(found)
        }
        chosen = {name: blocks for name, blocks in chosen.items() if blocks}
        if not chosen:
            assert self.rows is not None, "all rows are always some"
            raise InputError(
                f"what {' and '.join(self.modules)} fits has no rows that make {' or '.join(self.rows)}: set rows to "
                f"null, or name other modules."
            )
        for name, blocks in chosen.items():
            self._adapt(name, maps[name], blocks, seed)

    def _blocks(self, number: int, rows: Sequence[Rows]) -> list[Block]:
        """What is adapted of a matrix of so many rows."""
        if self.rows is None:
            return [Block("all", 0, number)]
        blocks: list[Block] = []
        start = 0
        for each in rows:
            stop = number if each.number is None else start + each.number
            if each.role in self.rows:
                before = sum(block.name.startswith(each.role) for block in blocks)
                blocks.append(Block(f"{each.role}{before + 1 if before else ''}", start, stop))
            start = stop
        return blocks

    def _adapt(self, name: str, linear: nn.Module, blocks: Sequence[Block], seed: int) -> None:
        if isinstance(linear, GroupedLinear):
            raise InputError(
                f"{name} holds the matrices of several experts, which cannot be adapted: name modules without it."
            )
        if isinstance(linear, Adapted):
            raise InputError(f"{name} is adapted twice, but can be once: name its rows in one adapter.")
        assert isinstance(linear, nn.Linear), "one of _maps"
        adapt(linear, begun(name, linear, self, blocks, seed))


class Adapter(nn.Module, ABC):
    """What stands in for a linear map while it is trained, and what it comes to in the end."""

    def __init__(self, spec: LinearAdapterSpec, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.spec, self.blocks = spec, tuple(blocks)

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map: … in, by out in and out -> … out."""

    @abstractmethod
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of the one linear map that does the same in evaluation."""


class Adapted(nn.Linear):
    """What a linear map becomes, in place: its parameters keep their names."""

    adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.adapter(x, self.weight, self.bias)
        return y


def adapt(linear: nn.Linear, adapter: Adapter) -> None:
    """Put an adapter into a linear map."""
    assert type(linear) is nn.Linear, "it is done once"
    linear.__class__ = Adapted
    assert isinstance(linear, Adapted)
    linear.adapter = adapter


def begun(name: str, linear: nn.Linear, spec: LinearAdapterSpec, blocks: Sequence[Block], seed: int) -> Adapter:
    """The adapter of a linear map, with its first weights: drawn by (seed, its name), or made of the map's weight.

    Args:
        name: of the map in the model.
    """
    adapter = spec.build(linear, blocks)
    for path, module in adapter.named_modules(prefix=f"{name}.adapter"):
        reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
        if reset is not None:
            with own_stream(seed, path):
                reset()
    return adapter


def attach(model: nn.Module, adapters: Mapping[str, AdapterSpec], seed: int) -> None:
    """Have adapters train, and nothing else. To be done once the model has the weights that are adapted.

    Adapters of a model without data have none either: see ``begun``.

    Raises:
        InputError: a pattern that nothing fits, or what it fits cannot be adapted, or is already.
    """
    model.requires_grad_(False)
    for name, spec in adapters.items():
        try:
            spec.attach(model, seed)
        except InputError as error:
            raise InputError(f"adapters.{name}: {error}") from error


def changed(x: Tensor, blocks: Mapping[Block, Tensor], axis: int = -1) -> Tensor:
    """A tensor with some of its slices along an axis in place of its own; in their order."""
    pieces, at = [], 0
    for block, piece in blocks.items():
        pieces += [x.narrow(axis, at, block.start - at)] if block.start > at else []
        pieces.append(piece)
        at = block.stop
    end = x.shape[axis]
    pieces += [x.narrow(axis, at, end - at)] if at < end else []
    return torch.cat(pieces, dim=axis) if len(pieces) > 1 else pieces[0]


def _maps(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every linear map by name; those of other libraries' classes may read their weight themselves."""
    kinds = (nn.Linear, Adapted, GroupedLinear)
    return [(name, module) for name, module in model.named_modules() if type(module) in kinds]


def _roles(model: nn.Module) -> dict[str, tuple[Rows, ...]]:
    """What the rows of linear maps are for, as their parts say it."""
    return {
        f"{name}.{path}".removeprefix("."): rows
        for name, part in model.named_modules()
        if isinstance(part, Part)
        for path, rows in part.roles().items()
    }
