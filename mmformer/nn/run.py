"""Layers, one after the other: what a stack does between the norms at its ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from mmformer.nn.halting import Halting
from mmformer.nn.layer import Layer, LayerState
from mmformer.nn.mixer import View
from mmformer.nn.sharing import step_signal
from mmformer.types import Aux


class Step(NamedTuple):
    """One application of a layer."""

    place: int  # among the applications, 0 the first
    layer: Layer
    drop_path: float  # the chance that a sample skips a branch, in training
    signalled: bool  # what enters is told which application it is


class Ran(NamedTuple):
    """What running layers made."""

    x: Tensor  # B L D
    states: tuple[LayerState, ...]  # of each application; none where none was handed in
    aux: Aux
    intermediates: dict[int, Tensor]  # application -> B L D


def run_layers(
    x: Tensor,
    steps: Sequence[Step],
    view: View,
    reading: View | None,
    past: tuple[LayerState, ...] | None,
    intermediates: Collection[int],
    read: Tensor | None = None,
) -> Ran:
    """Apply layers in turn.

    Args:
        x: B L D.
        view: what mixers may look at.
        reading: what cross mixers may look at.
        past: of each of the steps, what to go on from; None carries nothing.
        intermediates: applications whose outputs are to be returned.
        read: which tokens the last of the steps is to return (see ``Layer``); None: all.
    """
    states: list[LayerState] = []
    aux: Aux = {}
    kept: dict[int, Tensor] = {}
    for number, step in enumerate(steps):
        wanted = read if number == len(steps) - 1 else None
        x, state, more = _apply(step, x, view, reading, None if past is None else past[number], wanted)
        if state is not None:
            states.append(state)
        if step.place in intermediates:
            kept[step.place] = x
        add_aux(aux, more)
    return Ran(x, tuple(states), aux, kept)


def run_until_halted(
    x: Tensor,
    steps: Sequence[Step],
    view: View,
    reading: View | None,
    past: tuple[LayerState, ...] | None,
    intermediates: Collection[int],
    halting: Halting,
    may_stop: bool,
) -> Ran:
    """Apply layers in turn until each token has halted; arguments as of ``run_layers``.

    Args:
        may_stop: leave out the applications that would change no token any more.
    """
    states: list[LayerState] = []
    aux: Aux = {}
    kept: dict[int, Tensor] = {}
    valid = None if view.mask.valid is None else view.mask.valid[:, -x.shape[1] :]  # of x's own tokens
    pondered = halting.begin(x, valid)
    for number, step in enumerate(steps):
        # Later tokens will look at those that have halted here: a state needs them in all applications.
        if may_stop and past is None and not bool(pondered.running.any()):
            kept |= {later.place: x for later in steps[number:] if later.place in intermediates}
            break
        left, state, more = _apply(step, x, view, reading, None if past is None else past[number])
        x, pondered = halting(x, left, pondered, last=number == len(steps) - 1)
        if state is not None:
            states.append(state)
        if step.place in intermediates:
            kept[step.place] = x
        add_aux(aux, more)
    aux |= halting.asked(pondered)
    return Ran(pondered.mean, tuple(states), aux, kept)


def _apply(
    step: Step, x: Tensor, view: View, reading: View | None, past: LayerState | None, read: Tensor | None = None
) -> tuple[Tensor, LayerState | None, Aux]:
    if step.signalled:
        x = x + step_signal(step.place, x.shape[2], x.device).to(x.dtype)
    made: tuple[Tensor, LayerState | None, Aux] = step.layer(x, view, reading, past, step.drop_path, read)
    return made


def add_aux(aux: Aux, more: Aux) -> None:
    for name, term in more.items():
        before = aux.get(name)
        aux[name] = term if before is None else before.plus(term)
