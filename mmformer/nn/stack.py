"""A stack: Tokens in, Tokens out. It owns the position and makes the view that its layers share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.layer import LayerSpec, LayerState
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View, require_abilities
from mmformer.nn.pattern import PatternSpec
from mmformer.nn.plan import Plan, make_plan
from mmformer.nn.position import Heads, PositionSpec, unexpanded
from mmformer.spec import require, require_probability
from mmformer.types import Aux, LossTerm, Tokens


@dataclass(frozen=True)
class StackSpec:
    """Layers of one width.

    Attributes:
        width: of every token, D.
        depth: number of layers.
        layer: what each of them is.
        position: where tokens stand, for all layers alike.
        input_norm: normalise what enters the first layer, positions added (with that layer's norm; CLIP's and BERT's).
        final_norm: normalise what leaves the last layer (with the first layer's norm); post-norm stacks want none.
        memory_width: width of the memory that the layers' cross mixers read; None: the stack's own.
        drop_path: in training, the chance that a sample skips a branch of the last layer; in those before it is less,
            evenly down to 0 in the first (stochastic depth, Huang et al. 2016, §3).
        pattern: layers that follow one another in place of ``layer``, from the first again until there are ``depth``: a
            hybrid's ``[mamba, mamba, attention]``, say. Where some have a cross mixer, the others pass memory by.
    """

    width: int
    depth: int
    layer: LayerSpec = field(default_factory=LayerSpec)
    position: PositionSpec = field(default_factory=PositionSpec)
    input_norm: bool = False
    final_norm: bool = True
    memory_width: int | None = None
    drop_path: float = 0.0
    pattern: tuple[LayerSpec, ...] = ()

    def __post_init__(self) -> None:
        require(self.width >= 1, self, "width", "at least 1")
        require(self.depth >= 1, self, "depth", "at least 1")
        require(self.memory_width is None or self.memory_width >= 1, self, "memory_width", "at least 1")
        unread = self.memory_width is not None and not self.reads_memory
        require(not unread, self, "memory_width", "None when the layers have no cross mixer to read a memory")
        require_probability(self, "drop_path")
        require(self.depth > 1 or not self.drop_path, self, "drop_path", "0 where there is one layer, the first")
        require(not self.pattern or self.layer == LayerSpec(), self, "layer", "left out where there is a pattern")
        require(len(self.pattern) <= self.depth, self, "pattern", f"no longer than depth, {self.depth}")
        needed, mixers = self.position.needs, [layer.mixer for layer in self.layers]
        # A mixer that reads some of what a position gives has to read all of it.
        for mixer in [mixer for mixer in mixers if needed & mixer.abilities] or mixers[:1]:
            require_abilities("StackSpec.layer.mixer", mixer, sorted(needed), type(self.position).__name__)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What each of the layers is."""
        pattern = self.pattern or (self.layer,)
        return tuple(pattern[index % len(pattern)] for index in range(self.depth))

    @property
    def reads_memory(self) -> bool:
        """Whether its layers have cross mixers."""
        return any(layer.cross is not None for layer in self.layers)

    @property
    def abilities(self) -> frozenset[Ability]:
        """What all of its mixers can."""
        return frozenset.intersection(*(layer.mixer.abilities for layer in self.layers))

    def require_able(self, where: str, needed: Iterable[Ability], why: str) -> None:
        """Refuse the stack where one of its mixers cannot what it is to do (see ``require_abilities``)."""
        for layer in self.layers:
            require_abilities(f"{where}.layer.mixer", layer.mixer, needed, why)

    def heads(self) -> Heads | None:
        """The heads that its position serves.

        Raises:
            InputError: mixers that it serves have different ones.
        """
        needed = self.position.needs
        served = [layer.mixer for layer in self.layers if needed <= layer.mixer.abilities]
        found = {mixer: heads for mixer in served if (heads := mixer.heads_of(self.width)) is not None}
        if needed and len(set(found.values())) > 1:
            told = " and ".join(f"{heads.number} of width {heads.width}" for heads in dict.fromkeys(found.values()))
            raise InputError(
                f"{type(self.position).__name__} makes one table for all layers, but their mixers have heads that "
                f"differ, {told}: give them the same heads."
            )
        return next(iter(found.values()), None)

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
        self.spec, self.abilities = spec, spec.abilities
        self.sparse = {layer.mixer.sparse for layer in spec.layers if layer.mixer.sparse is not None}
        self.position = spec.position.build(spec.width, spec.heads())
        last = max(1, spec.depth - 1)
        self.layers = nn.ModuleList(
            layer.build(spec.width, spec.memory_width, spec.drop_path * index / last)
            for index, layer in enumerate(spec.layers)
        )
        norm = spec.layers[0].norm
        self.input_norm = norm.build(spec.width) if spec.input_norm else nn.Identity()
        self.norm = norm.build(spec.width) if spec.final_norm else nn.Identity()

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
        self._check_abilities(tokens, causal, prefix, state)
        past = state or StackState(())
        if state is not None and not causal:
            raise InputError("A state goes on from earlier tokens, which saw no later ones: hand in causal=True.")
        if past.pos is not None:
            if prefix is not None and past.prefix is None:
                raise InputError("A prefix belongs to the first of the calls that go on from one another.")
            prefix = past.prefix
        pos, valid, segment = _described(past, tokens)
        mask = Mask(causal, prefix, valid, tokens.segment, segment)
        bias = self.position.bias(tokens.pos, pos)
        plans: dict[PatternSpec, Plan] = {}
        if self.sparse:
            mask = mask._replace(pos=unexpanded(pos), order=_order(valid, segment))
            # A bias is dense already, and decoding has few queries.
            if bias is None and tokens.x.shape[1] == pos.shape[1]:
                plans = self._plans(mask, tokens.x)
        view = View(mask, self.position.rotary(tokens.pos), bias, plans=plans)
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

    def _plans(self, mask: Mask, x: Tensor) -> dict[PatternSpec, Plan]:
        plans: dict[PatternSpec, Plan] = {}
        for pattern in dict.fromkeys(each.pattern for each in self.sparse):
            dropout = max(each.dropout for each in self.sparse if each.pattern == pattern) if self.training else 0.0
            plan = make_plan(mask._replace(pattern=pattern), x.shape[1], x.device, dropout)
            if plan is not None:
                plans[pattern] = plan
        return plans

    def _check(
        self, causal: bool, prefix: Tensor | None, memory: Tokens | None, intermediates: Collection[int]
    ) -> None:
        reads = self.spec.reads_memory
        if reads and memory is None:
            raise InputError("This stack's layers have a cross mixer, but no memory was handed in.")
        if memory is not None and not reads:
            raise InputError("Memory was handed in, but this stack's layers have no cross mixer: set LayerSpec.cross.")
        if prefix is not None and not causal:
            raise InputError("A prefix means something only in a causal pass: hand in causal=True.")
        wrong = [index for index in intermediates if not 0 <= index < len(self.layers)]
        if wrong:
            raise InputError(f"Intermediates {wrong} were asked for, but the layers are 0 to {len(self.layers) - 1}.")

    def _check_abilities(self, tokens: Tokens, causal: bool, prefix: Tensor | None, state: StackState | None) -> None:
        asked: dict[Ability, bool] = {
            "causal": causal,
            "prefix": prefix is not None,
            "cache": state is not None,
            "padding": tokens.valid is not None,
            "packing": tokens.segment is not None,
        }
        if not self.abilities >= {ability for ability, wanted in asked.items() if wanted}:
            self.spec.require_able("StackSpec", [ability for ability, wanted in asked.items() if wanted], "This pass")


def _order(valid: Tensor | None, segment: Tensor | None) -> Tensor | None:
    """How many real tokens of its segment stand before each token: B L; None: as many as stand before it."""
    if segment is None:
        return None if valid is None else valid.long().cumsum(1) - valid.long()
    # Sorted by segment, places are counted along each; then everything goes back to where it was.
    counted = torch.ones_like(segment) if valid is None else valid.long()
    by_segment = segment.argsort(dim=1, stable=True)
    before = counted.gather(1, by_segment).cumsum(1) - counted.gather(1, by_segment)
    ordered = segment.gather(1, by_segment)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = before.masked_fill(~begins, -1).cummax(1).values
    return torch.empty_like(before).scatter_(1, by_segment, before - start)


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
