"""What a reference's parameters are called and how they lie, as ours: a table of rules, read both ways.

A rule goes from a tensor of theirs, or several, to one of ours, or several, and back; ``{i}`` in names stands for any
number, other ``{words}`` for any name, and means the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.errors import InputError, nearest

State = dict[str, Tensor]
Shape = tuple[int, ...]
Sizes = Sequence[int] | None


@dataclass(frozen=True)
class Rule:
    """Tensors of ours ↔ tensors of theirs.

    Attributes:
        ours: names with placeholders.
        theirs: names with placeholders; "" is a tensor of zeros that they have not (Whisper's keys have no bias).
        to_ours: their tensors, and the shapes of ours -> ours.
        to_theirs: our tensors -> theirs.
        optional: theirs may be absent (a matrix that is tied to another); then ours is that other's, and where it is
            there the two have to be equal.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Callable[[list[Tensor], list[Shape]], list[Tensor]]
    to_theirs: Callable[[list[Tensor]], list[Tensor]]
    optional: bool = False


def same(ours: str, theirs: str) -> Rule:
    """One tensor, as it is."""
    return Rule((ours,), (theirs,), lambda found, _: found, lambda made: made)


def tied(ours: str, theirs: str) -> Rule:
    """A second name of theirs for what another rule has as well."""
    return Rule((ours,), (theirs,), lambda found, _: found, lambda made: made, optional=True)


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix that is applied from the other side (GPT-2's "Conv1D")."""
    return Rule((ours,), (theirs,), lambda found, _: [_turned(found[0])], lambda made: [_turned(made[0])])


def _turned(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.ndim == 2 else matrix  # a bias has no other side


def viewed(ours: str, theirs: str, shape: Shape) -> Rule:
    """One tensor whose elements lie alike, in another shape with them."""
    return Rule(
        (ours,), (theirs,), lambda found, shapes: [found[0].reshape(shapes[0])], lambda made: [made[0].reshape(shape)]
    )


def joined(ours: str, theirs: Sequence[str], sizes: Sizes = None, shape: Shape | None = None) -> Rule:
    """Several of theirs, one after the other along the first axis, and then in the shape that ours has.

    Args:
        sizes: of each along it; None: all alike.
        shape: of each of theirs, where all are alike and have another than their part of ours.
    """

    def to_ours(found: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [torch.cat(found).reshape(shapes[0])]

    def to_theirs(made: list[Tensor]) -> list[Tensor]:
        if shape is not None:
            return list(made[0].reshape(len(theirs), *shape).unbind())
        return list(torch.split(made[0], list(sizes)) if sizes is not None else torch.chunk(made[0], len(theirs)))

    return Rule((ours,), tuple(theirs), to_ours, to_theirs)


def split(ours: Sequence[str], theirs: str) -> Rule:
    """One of theirs, cut along the first axis."""

    def to_ours(found: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return list(torch.split(found[0], [shape[0] for shape in shapes]))

    return Rule(tuple(ours), (theirs,), to_ours, lambda made: [torch.cat(made)])


def turned(ours: str, theirs: str, shape: Shape, order: Sequence[int]) -> Rule:
    """One tensor whose axes come in another order with us.

    Args:
        shape: of theirs.
        order: which of these axes each of ours is, before ours are joined: (0, 1, 3, 2) turns a kernel around.
    """
    back = [order.index(axis) for axis in range(len(order))]
    between = [shape[axis] for axis in order]
    return Rule(
        (ours,),
        (theirs,),
        lambda found, shapes: [found[0].reshape(shape).permute(*order).reshape(shapes[0])],
        lambda made: [made[0].reshape(between).permute(*back).reshape(shape)],
    )


def turned_grid(ours: str, theirs: str, sizes: tuple[int, int], special: int) -> Rule:
    """A table of positions over a grid, after those of some special tokens: the grid's axes are the other way round.

    Args:
        sizes: of their grid.
    """

    def other(table: Tensor, grid: tuple[int, int]) -> Tensor:
        places = table[special:].reshape(*grid, -1).transpose(0, 1).flatten(0, 1)
        return torch.cat((table[:special], places))

    return Rule(
        (ours,),
        (theirs,),
        lambda found, shapes: [other(found[0].reshape(shapes[0]), sizes)],
        lambda made: [other(made[0], sizes[::-1])[None]],
    )


def constant(theirs: str, value: Callable[[], Tensor]) -> Rule:
    """What weights may have beside their parameters, and is always the same. Ours compute it."""
    return Rule((), (theirs,), lambda found, _: found, lambda _: [value()], optional=True)


def counted(theirs: str, number: int) -> Rule:
    """What older weights have beside their parameters: 0, 1, … , in one row. Ours count by themselves."""
    return constant(theirs, lambda: torch.arange(number)[None])


def rooted(rules: Iterable[Rule], old: str, new: str) -> list[Rule]:
    """Rules of a part whose names begin with something else in a larger model."""
    return [replace(rule, theirs=tuple(_rooted(name, old, new) for name in rule.theirs)) for rule in rules]


def _rooted(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


class Translated(NamedTuple):
    state: State
    absent: tuple[str, ...]  # optional names of theirs that were not there


def to_ours(rules: Sequence[Rule], theirs: Mapping[str, Tensor], shapes: Mapping[str, Shape], where: str) -> Translated:
    """Our state of theirs.

    Args:
        shapes: of all parameters of our model.

    Raises:
        InputError: names of theirs that are missing or left over (with the nearest), or shapes that do not fit.
    """
    made: State = {}
    used: set[str] = set()
    absent: list[str] = []
    problems: list[str] = []
    for rule, ours, names in _bound(rules, shapes):
        there = [name for name in names if name]
        missing = [name for name in there if name not in theirs]
        if rule.optional:
            if there[0] in used:  # with a matrix of its own
                continue
            if missing:
                absent += missing
            elif all(name in made for name in ours):
                wanted = rule.to_theirs([made[name] for name in ours])[0].to(theirs[there[0]].dtype)
                told = "what it is tied to" if ours else "what is computed in its place"
                if not torch.equal(theirs[there[0]], wanted):
                    problems.append(f"{there[0]} differs from {told}")
            used.update(there)
            continue
        used.update(there)
        if missing:
            problems += [f"missing: {name}" for name in missing]
            continue
        found = _with_zeros([theirs[name] if name else None for name in names])
        try:
            tensors = rule.to_ours(found, [shapes[name] for name in ours])
        except RuntimeError:
            tensors = found
        for name, tensor in zip(ours, tensors, strict=False):
            if tuple(tensor.shape) != shapes[name]:
                told = " and ".join(f"{name} {tuple(theirs[name].shape)}" for name in there)
                problems.append(f"the file has {told}, but the config asks for {shapes[name]} of {name}")
            made[name] = tensor
    left = sorted(theirs.keys() - used)
    free = [name.removeprefix("missing: ") for name in problems if name.startswith("missing: ")]
    problems += [f"left over: {name} {tuple(theirs[name].shape)}{nearest(name, free)}" for name in left]
    problems += [f"no rule makes our {name}" for name in sorted(shapes.keys() - made.keys()) if not free]
    if problems:
        shown = "\n  ".join(problems[:8])
        raise InputError(f"{where}: {len(problems)} parameters do not fit what the config says:\n  {shown}")
    return Translated(made, tuple(absent))


def to_theirs(
    rules: Sequence[Rule], ours: Mapping[str, Tensor], absent: Iterable[str] = (), strict: bool = True
) -> State:
    """Their state of ours: what ``to_ours`` made of it goes back to the bit.

    Args:
        absent: optional names that are left out.
        strict: refuse what theirs has no place for; False: leave it out, as for gradients, which the same rules turn.

    Raises:
        InputError: a tensor that would have to be zeros is not.
    """
    made: State = {}
    left_out = set(absent)
    for rule, own, names in _bound(rules, ours):
        if rule.optional and (names[0] in left_out or names[0] in made):
            continue
        tensors = rule.to_theirs([ours[name] for name in own])
        for name, tensor in zip(names, tensors, strict=True):
            if name:
                made[name] = tensor.contiguous()
            elif strict and tensor.any():
                raise InputError(f"{own[0]} has learned a part that the other library has no place for.")
    return made


def _with_zeros(found: list[Tensor | None]) -> list[Tensor]:
    like = next(tensor for tensor in found if tensor is not None)
    return [torch.zeros_like(like) if tensor is None else tensor for tensor in found]


def _bound(rules: Sequence[Rule], names: Iterable[str]) -> Iterable[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
    """Each rule with the names that it is for, placeholders filled in, on both sides."""
    known = list(names)
    for rule in sorted(rules, key=lambda rule: rule.optional):
        if not rule.ours:
            yield rule, (), rule.theirs
            continue
        pattern = _pattern(rule.ours[0])
        for name in known:
            if match := pattern.fullmatch(name):
                words = match.groupdict()
                ours, theirs = (tuple(side.format(**words) for side in names) for names in (rule.ours, rule.theirs))
                yield rule, ours, theirs


def _pattern(template: str) -> re.Pattern[str]:
    """``layers.{i}.norm.{p}`` as an expression with groups."""
    parts = re.split(r"\{(\w+)\}", template)
    made = [re.escape(text) if place % 2 == 0 else _group(text) for place, text in enumerate(parts)]
    return re.compile("".join(made))


def _group(name: str) -> str:
    return rf"(?P<{name}>\d+)" if len(name) == 1 and name in "ijkn" else rf"(?P<{name}>[^.]+)"
