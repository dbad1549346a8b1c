"""Where tokens stand, for pictures of another size and sounds of another length: tables of positions are resized."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from mmformer.bundle import Transforms
from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.position import LearnedPositionSpec, Position, PositionSpec
from mmformer.surgery.remade import Remade
from mmformer.types import AXES, Audio


def places(encoder: EncoderSpec, transforms: Transforms) -> tuple[int, ...]:
    """How many places an encoder's tokens take on each axis, for what the transforms hand it.

    Raises:
        InputError: its tokenizer refuses that, or there is no such transform.
    """
    value: Any
    if encoder.tokenizer.modality == "image" and transforms.image is not None:
        value = torch.zeros(1, 3, *transforms.image.size, dtype=torch.uint8)
    elif encoder.tokenizer.modality == "audio" and transforms.audio is not None:
        number = transforms.audio.most
        value = Audio(torch.zeros(1, number), torch.tensor([number]), transforms.audio.rate)
    else:
        raise InputError(
            f"The bundle has no transform that says how large its {encoder.tokenizer.modality} inputs are: import it "
            f"from a folder that has its preprocessor_config.json, or write one into transforms.yaml."
        )
    with torch.no_grad():
        pos = encoder.tokenizer.build(8).eval()(value).pos
    return tuple(int(pos[..., axis].max()) + 1 for axis in range(AXES))


def with_places(
    spec: ModelSpec, encoders: Mapping[str, EncoderSpec], before: Transforms, after: Transforms
) -> ModelSpec:
    """A spec with changed encoders, and positions that are as many as their tokens take then.

    Raises:
        InputError: a stack serves encoders that change differently, or has positions for other sizes than they take.
    """
    stacks = dict(spec.stacks)
    wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {}
    for name, encoder in encoders.items():
        if encoder.tokenizer.modality == "text":
            continue
        taken = places(spec.encoders[name], before), places(encoder, after)
        run = {encoder.stack, *(head.runs for head in spec.heads.values() if head.runs and name in head.reads)}
        for stack in sorted(each for each in run if taken[0] != taken[1] and stacks[each].position.limits):
            first = wanted.setdefault(stack, (*taken, name))
            if first[:2] != taken:
                raise InputError(
                    f"model.stacks.{stack} has one table of positions, but the tokens of its encoders would change "
                    f"differently: {first[2]} from {first[0]} to {first[1]}, {name} from {taken[0]} to {taken[1]}."
                )
    for stack, (took, takes, name) in wanted.items():
        position = _resized(stacks[stack].position, took, takes, f"model.stacks.{stack}", name)
        stacks[stack] = dataclasses.replace(stacks[stack], position=position)
    return dataclasses.replace(spec, stacks=stacks, encoders=dict(encoders))


def _resized(
    position: PositionSpec, before: tuple[int, ...], after: tuple[int, ...], where: str, encoder: str
) -> PositionSpec:
    limits = position.limits
    sizes = []
    for axis, size in limits.items():
        if after[axis] == before[axis] or after[axis] <= size != before[axis]:
            sizes.append(size)
        elif size == before[axis]:
            sizes.append(after[axis])
        else:
            raise InputError(
                f"{where} has {size} places on axis {axis}, of which the encoder '{encoder}' takes {before[axis]}, and "
                f"would take {after[axis]}: a table that was learned for other sizes cannot be resized to these."
            )
    changes: dict[str, Any] = {"sizes": tuple(sizes)}
    if isinstance(position, LearnedPositionSpec):
        changes["learned"] = None if position.learned is None else tuple(sizes)
    return dataclasses.replace(position, **changes)


def moved(old: ModelSpec, new: ModelSpec) -> set[str]:
    """The stacks whose positions differ."""
    both = old.stacks.keys() & new.stacks.keys()
    return {name for name in both if old.stacks[name].position != new.stacks[name].position}


def remade_places(old: Model, new: Model, stacks: Collection[str]) -> Iterator[tuple[str, Remade]]:
    """The tables of positions of stacks, for other sizes, as the positions themselves resize them."""
    for name in sorted(stacks):
        before, after = old.spec.stacks[name].position, new.spec.stacks[name].position
        module, key = new.stack_of(name).position, f"stacks.{name}.position.weight"
        assert isinstance(module, Position)
        table = module.resized(old.state_dict()[key], before)
        assert table is not None, "of one kind"
        yield key, Remade(table, f"from {_told(before)} to {_told(after)} places")


def _told(position: PositionSpec) -> str:
    return "×".join(map(str, position.limits.values()))
