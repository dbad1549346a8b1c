"""A stack: Tokens in, Tokens out. It owns the position and makes the view that its layers share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.layer import LayerSpec, LayerState
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import Aux, View
from mmformer.nn.position import PositionSpec
from mmformer.spec import require
from mmformer.types import LossTerm, Tokens


@dataclass(frozen=True)
class StackSpec:
    """Layers of one width.

    Attributes:
        width: of every token, D.
        depth: number of layers.
        layer: what each of them is.
        position: where tokens stand, for all layers alike.
        input_norm: normalise what enters the first layer, positions added (with the layer's norm; CLIP's and BERT's).
        final_norm: normalise what leaves the last layer (with the layer's norm); post-norm stacks want none.
        memory_width: width of the memory that the layers' cross mixers read; None: the stack's own.
    """

    width: int
    depth: int
    layer: LayerSpec = field(default_factory=LayerSpec)
    position: PositionSpec = field(default_factory=PositionSpec)
    input_norm: bool = False
    final_norm: bool = True
    memory_width: int | None = None

    def __post_init__(self) -> None:
        require(self.width >= 1, self, "width", "at least 1")
        require(self.depth >= 1, self, "depth", "at least 1")
        require(self.memory_width is None or self.memory_width >= 1, self, "memory_width", "at least 1")
        unread = self.memory_width is not None and self.layer.cross is None
        require(not unread, self, "memory_width", "None when the layer has no cross mixer to read a memory")

    def build(self) -> Stack:
        return Stack(self)


class StackState(NamedTuple):
    """What decoding carries: the layers' states and the description of the tokens that they hold."""

    layers: tuple[LayerState, ...]
    pos: Tensor | None = None  # B L A
    valid: Tensor | None = None  # B L
    segment: Tensor | None = None  # B L
    prefix: Tensor | None = None  # B: of the first call, whose tokens must hold it


class StackOutput(NamedTuple):
    tokens: Tokens
    state: StackState | None  # only when one was handed in
    aux: Aux
    intermediates: dict[int, Tensor]  # layer -> B L D, what left that layer, before the final norm


class Stack(nn.Module):
    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.position = spec.position.build(spec.width, spec.layer.mixer.head_width(spec.width))
        self.layers = nn.ModuleList(spec.layer.build(spec.width, spec.memory_width) for _ in range(spec.depth))
        self.input_norm = spec.layer.norm.build(spec.width) if spec.input_norm else nn.Identity()
        self.norm = spec.layer.norm.build(spec.width) if spec.final_norm else nn.Identity()

    def empty_state(self) -> StackState:
        """What to hand in at the first of several calls that go on from one another."""
        return StackState(tuple(LayerState() for _ in self.layers))

    def forward(
        self,
        tokens: Tokens,
        *,
        causal: bool = False,
        prefix: Tensor | None = None,
        memory: Tokens | None = None,
        state: StackState | None = None,
        intermediates: Collection[int] = (),
    ) -> StackOutput:
        """Run the layers.

        Args:
            tokens: what to work on; with a state, only the new tokens.
            causal: a token sees itself and those before it.
            prefix: B, int64; with causal, the first prefix[b] tokens are seen by all. With a state, it is handed in at
                the first call, whose tokens hold all of it, and remembered.
            memory: read by the layers' cross mixers; needed when they have them, refused when not.
            state: what the last call returned, or ``empty_state()`` to begin.
            intermediates: layers, 0 the first, whose outputs are to be returned.

        Raises:
            InputError: memory is missing or is not read; a prefix or a state without causal; an intermediate that is
                no layer.
        """
        self._check(causal, prefix, memory, intermediates)
        past = state or StackState(())
        if state is not None and not causal:
            raise InputError("A state goes on from earlier tokens, which saw no later ones: hand in causal=True.")
        if past.pos is not None:
            if prefix is not None and past.prefix is None:
                raise InputError("A prefix belongs to the first of the calls that go on from one another.")
            prefix = past.prefix
        pos, valid, segment = _described(past, tokens)
        mask = Mask(causal, prefix, valid, tokens.segment, segment)
        view = View(mask, self.position.rotary(tokens.pos), self.position.bias(tokens.pos, pos))
        reading = None
        if memory is not None:
            seen = Mask(valid=memory.valid, query_segment=tokens.segment, key_segment=memory.segment)
            reading = View(seen, memory=memory.x)

        x = self.input_norm(self.position.embed(tokens.x, tokens.pos))  # B L D
        states: list[LayerState] = []
        aux: Aux = {}
        kept: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            x, layer_state, more = layer(x, view, reading, None if state is None else past.layers[index])
            if layer_state is not None:
                states.append(layer_state)
            if index in intermediates:
                kept[index] = x
            for name, term in more.items():
                before = aux.get(name)
                aux[name] = term if before is None else LossTerm(before.total + term.total, before.items + term.items)
        after = None if state is None else StackState(tuple(states), pos, valid, segment, prefix)
        # Not tokens._replace: a compiled stack would return a tuple without members (PyTorch 2.11).
        return StackOutput(Tokens(self.norm(x), tokens.pos, tokens.valid, tokens.segment), after, aux, kept)

    def _check(
        self, causal: bool, prefix: Tensor | None, memory: Tokens | None, intermediates: Collection[int]
    ) -> None:
        reads = self.spec.layer.cross is not None
        if reads and memory is None:
            raise InputError("This stack's layers have a cross mixer, but no memory was handed in.")
        if memory is not None and not reads:
            raise InputError("Memory was handed in, but this stack's layers have no cross mixer: set LayerSpec.cross.")
        if prefix is not None and not causal:
            raise InputError("A prefix means something only in a causal pass: hand in causal=True.")
        wrong = [index for index in intermediates if not 0 <= index < len(self.layers)]
        if wrong:
            raise InputError(f"Intermediates {wrong} were asked for, but the layers are 0 to {len(self.layers) - 1}.")


def _described(past: StackState, tokens: Tokens) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """pos, valid and segment of all keys: those in the state, then the new tokens."""
    if past.pos is None:
        return tokens.pos, tokens.valid, tokens.segment
    pos = torch.cat((past.pos, tokens.pos), dim=1)
    valid = None
    if past.valid is not None or tokens.valid is not None:
        new = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
        old = new.new_ones(past.pos.shape[:2]) if past.valid is None else past.valid
        valid = torch.cat((old, new), dim=1)
    if (past.segment is None) != (tokens.segment is None):
        raise InputError("Either all calls that go on from one another have segments, or none has.")
    segment = None
    if past.segment is not None and tokens.segment is not None:
        segment = torch.cat((past.segment, tokens.segment), dim=1)
    return pos, valid, segment
