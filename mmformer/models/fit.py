"""Whether a stack can run what is put on it: what its parts can, and its places for tokens."""

from __future__ import annotations

import math

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.nn.ability import Ability
from mmformer.nn.stack import StackSpec
from mmformer.types import AXES


def require_fit(name: str, encoder: EncoderSpec, stack: StackSpec) -> None:
    """Refuse a stack that an encoder cannot run, or that has no place for all of its tokens."""
    if any(layer.cross is not None for layer in stack.layers[: encoder.layers]):
        raise InputError(
            f"model.stacks.{encoder.stack}.layer has a cross mixer, which reads a memory, but model.encoders.{name} "
            f"has none to hand in: leave layer.cross out, or let the encoder run the layers before it alone."
        )
    needed: list[Ability] = ["causal" if encoder.causal else "bidirectional"]
    needed += ["packing"] if encoder.packed else []
    if encoder.layers is not None and (encoder.layers >= stack.depth or stack.halting or stack.reversible):
        raise InputError(
            f"model.encoders.{name}.layers is {encoder.layers}, but model.stacks.{encoder.stack} has {stack.depth}, of "
            f"which fewer can be run alone, where it neither halts nor is reversible: leave layers out."
        )
    stack.require_able(f"model.stacks.{encoder.stack}", needed, f"model.encoders.{name}")
    require_places(f"model.encoders.{name}", encoder.entering_places, encoder.tokenizer, encoder.stack, stack)
    _require_length(name, encoder, stack)


def _require_length(name: str, encoder: EncoderSpec, stack: StackSpec) -> None:
    """Refuse a stack with a mixer for shorter rows than an encoder has, where that is known."""
    places = [number for number in encoder.tokenizer.places if number is not None]
    if len(places) < AXES:  # how many tokens a row has depends on what it is handed
        return
    number = math.prod(places) + encoder.class_token + encoder.registers
    for mixer in stack.mixers:
        if mixer.longest is not None and mixer.longest < number:
            raise InputError(
                f"model.stacks.{encoder.stack} has a {type(mixer).__name__} over rows of at most {mixer.longest} "
                f"tokens, but those of model.encoders.{name} have up to {number}: raise its length to {number}, or let "
                f"the tokenizer make fewer."
            )


def require_places(where: str, made: tuple[int | None, ...], by: object, name: str, stack: StackSpec) -> None:
    """Refuse a stack whose learned positions have no row for some of the places of tokens that a spec makes."""
    for axis, size in stack.position.limits.items():
        places = made[axis]
        if places is not None and places > size:
            raise InputError(
                f"model.stacks.{name}.position has {size} places on axis {axis}, but the tokens of {where} stand at up "
                f"to {places} ({type(by).__name__}): raise {type(stack.position).__name__}.sizes to {places}, "
                f"or let the tokenizer make fewer."
            )
