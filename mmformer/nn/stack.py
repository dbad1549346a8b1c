"""A stack: Tokens in, Tokens out. It owns the position and runs its layers over one view."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.ability import Ability, require_abilities
from mmformer.nn.dropout import Dropout
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.initialisation import DeepNormInitialisationSpec, InitialisationSpec, Part, drawn_by
from mmformer.nn.layer import Layer, LayerSpec, LayerState
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import MixerSpec, View, picked
from mmformer.nn.position import Heads, PositionSpec
from mmformer.nn.reversible import INVERTIBLE, is_invertible, run_reversibly
from mmformer.nn.run import Ran, Step, run_layers, run_until_halted
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.state import StackState, described
from mmformer.nn.viewing import Viewing
from mmformer.spec import require, require_probability
from mmformer.types import Aux, Tokens

DEEPEST = 10_000
"""Layers at most: ten times those of the deepest published; a file that asks for billions is refused at once."""


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
        embedding_dropout: on tokens with their positions added, before ``input_norm`` (BigBird).
        input_dropout: on what enters the first layer, positions added and normalised.
        output_dropout: on what leaves the last layer, normalised (T5).
        sharing: apply fewer layers than ``depth`` says, some of them several times; None: each layer has weights of its
            own.
        halting: let each token go through as many layers as it needs; None: all go through all.
        reversible: run the layers over two streams, so that what entered each is computed again from what left it: the
            memory of a gradient does not grow with depth (``nn/reversible.py``).
        initialisation: how the layers' matrices are drawn; None: each part's own start, or DeepNorm's where the norms'
            placement is ``deep``.
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
    input_dropout: float = 0.0
    sharing: SharingSpec | None = None
    halting: HaltingSpec | None = None
    initialisation: InitialisationSpec | None = None
    reversible: bool = False
    output_dropout: float = 0.0
    embedding_dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.width >= 1, self, "width", "at least 1")
        require(self.depth >= 1, self, "depth", "at least 1")
        require(self.depth <= DEEPEST, self, "depth", f"at most {DEEPEST:,}")
        require(self.memory_width is None or self.memory_width >= 1, self, "memory_width", "at least 1")
        unread = self.memory_width is not None and not self.reads_memory
        require(not unread, self, "memory_width", "None when the layers have no cross mixer to read a memory")
        require_probability(self, "drop_path")
        require(self.depth > 1 or not self.drop_path, self, "drop_path", "0 where there is one layer, the first")
        require(not self.pattern or self.layer == LayerSpec(), self, "layer", "left out where there is a pattern")
        require_probability(self, "input_dropout")
        require_probability(self, "embedding_dropout")
        require(self.input_norm or not self.embedding_dropout, self, "embedding_dropout", "0 without an input_norm")
        require_probability(self, "output_dropout")
        fewer = self.sharing is None or self.sharing.distinct < self.depth
        require(fewer, self, "sharing", f"of fewer distinct layers than depth, {self.depth}")
        limit = "depth" if self.sharing is None else "sharing.distinct"
        require(len(self.pattern) <= self.distinct, self, "pattern", f"no longer than {limit}, {self.distinct}")
        require(self.halting is None or self.depth > 1, self, "halting", "None where there is one layer")
        self._require_deep()
        undone = self.halting is None and (self.sharing is None or not self.sharing.step_signal)
        undone = undone and all(is_invertible(layer) for layer in self.layers)
        require(undone or not self.reversible, self, "reversible", f"false, unless {INVERTIBLE}")
        needed, mixers = self.position.needs, self.mixers
        # A mixer that reads some of what a position gives has to read all of it.
        for mixer in [mixer for mixer in mixers if needed & mixer.abilities] or mixers[:1]:
            require_abilities("StackSpec.layer.mixer", mixer, sorted(needed), type(self.position).__name__)
        for mixer in (*mixers, *self.crosses):
            mixer.heads_of(self.width)  # refuses heads that do not fit it

    def _require_deep(self) -> None:
        deep = [layer.placement == "deep" for layer in self.pattern or (self.layer,)]
        require(all(deep) or not any(deep), self, "pattern", "of layers whose placement is 'deep', or of none that is")
        fits = self.initialisation is None or isinstance(self.initialisation, DeepNormInitialisationSpec) == deep[0]
        only = "one that goes with the norms' placement: DeepNorm's with 'deep', and any other without"
        require(fits, self, "initialisation", only)

    @property
    def distinct(self) -> int:
        """How many layers have weights of their own."""
        return self.depth if self.sharing is None else self.sharing.distinct

    @property
    def applied(self) -> tuple[int, ...]:
        """Which of the distinct layers is applied, time after time."""
        return tuple(range(self.depth)) if self.sharing is None else self.sharing.applied(self.depth)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What each of the layers is, application by application."""
        pattern = self.pattern or (self.layer,)
        return tuple(pattern[index % len(pattern)] for index in self.applied)

    @property
    def mixers(self) -> list[MixerSpec]:
        """Of the layers that have one, application by application."""
        return [layer.mixer for layer in self.layers if layer.mixer is not None]

    @property
    def crosses(self) -> list[MixerSpec]:
        """Those that read a memory, application by application."""
        return [layer.cross for layer in self.layers if layer.cross is not None]

    @property
    def branches(self) -> int:
        """How many residual branches tokens go through."""
        return sum(layer.branches for layer in self.layers)

    @property
    def reads_memory(self) -> bool:
        """Whether its layers have cross mixers."""
        return bool(self.crosses)

    @property
    def abilities(self) -> frozenset[Ability]:
        """What all of its mixers can."""
        return frozenset.intersection(*(layer.abilities for layer in self.layers))

    def require_able(self, where: str, needed: Iterable[Ability], why: str) -> None:
        """Refuse the stack where one of its parts cannot what it is to do (see ``require_abilities``)."""
        for layer in self.layers:
            if layer.mixer is not None:
                require_abilities(f"{where}.layer.mixer", layer.mixer, needed, why)
            if layer.feedforward is not None:
                layer.feedforward.require_able(f"{where}.layer.feedforward", needed, why)

    def heads(self) -> Heads | None:
        """The heads that its position serves.

        Raises:
            InputError: mixers that it serves have different ones.
        """
        needed = self.position.needs
        served = [mixer for mixer in self.mixers if needed <= mixer.abilities]
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


class StackOutput(NamedTuple):
    tokens: Tokens
    state: StackState | None  # only when one was handed in
    aux: Aux
    intermediates: dict[int, Tensor]  # layer -> B L D, what left that layer, before the final norm


class Stack(nn.Module):
    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec, self.abilities = spec, spec.abilities
        self.viewing = Viewing(spec.mixers, spec.crosses, "bias" in spec.position.needs)
        self.position = spec.position.build(spec.width, spec.heads())
        last, firsts = max(1, spec.depth - 1), dict(zip(spec.applied, spec.layers, strict=True))
        self.drop_path = [spec.drop_path * index / last for index in range(spec.depth)]
        self.layers = nn.ModuleList(
            firsts[index].build(spec.width, spec.memory_width, spec.branches) for index in range(spec.distinct)
        )
        self.halting = None if spec.halting is None else spec.halting.build(spec.width)
        norm = spec.layers[0].norm
        self.input_norm = norm.build(spec.width) if spec.input_norm else nn.Identity()
        self.embedding_dropout, self.input_dropout = Dropout(spec.embedding_dropout), Dropout(spec.input_dropout)
        self.norm = norm.build(spec.width) if spec.final_norm else nn.Identity()
        self.output_dropout = Dropout(spec.output_dropout)
        self.may_stop = True  # in evaluation, where nothing is left to do; processes that share layers may not
        for calls in self.drawn().values():
            for call in calls:
                call()

    def drawn(self) -> dict[nn.Module, list[Callable[[], None]]]:
        """What draws a module's parameters by the spec's initialisation, after its own ``reset_parameters``."""
        deep = self.spec.layers[0].placement == "deep"
        spec = self.spec.initialisation or (DeepNormInitialisationSpec() if deep else None)
        found: dict[nn.Module, list[Callable[[], None]]] = {}
        for layer in self.layers if spec is not None else ():
            for part in layer.children():
                if isinstance(part, Part) and spec is not None:
                    found |= drawn_by(spec, part, self.spec.branches)
        return found

    def empty_state(self) -> StackState:
        """What to hand in at the first of several calls that go on from one another."""
        return StackState(tuple(LayerState() for _ in range(self.spec.depth)))

    def forward(
        self,
        tokens: Tokens,
        *,
        causal: bool = False,
        prefix: Tensor | None = None,
        memory: Tokens | None = None,
        media: Tensor | None = None,
        state: StackState | None = None,
        intermediates: Collection[int] = (),
        span: range | None = None,
        trailing: bool = False,
        read: Tensor | None = None,
    ) -> StackOutput:
        """Run the layers.

        Args:
            tokens: what to work on; with a state, only the new tokens.
            causal: a token sees itself and those before it.
            prefix: B, int64; with causal, the first prefix[b] tokens are seen by all. With a state, it is handed in at
                the first call, whose tokens hold all of it, and remembered.
            memory: read by the layers' cross mixers; needed when they have them, refused when not. With a state
                it may have fewer rows, each for as many rows of tokens that follow one another: beams of one input.
            media: B L, int64: which segment of the memory each token sees, none where there is none of that number
                (Flamingo's pictures, from 1; see ``models/media.py``). None: those of its own segment.
            state: what the last call returned, or ``empty_state()`` to begin.
            intermediates: layers, 0 the first, whose outputs are to be returned; of a layer that is applied several
                times, each application counts.
            span: the layers to run; None: all. Positions come before the first of all layers, and the final norm after
                the last: a pass in several spans, each over the tokens that left the one before, is the whole pass.
            trailing: tokens that are not valid stand after all that are, and nobody reads what becomes of them: they
                may see each other in a causal pass.
            read: N K, int64: which tokens, counted through all rows, leave the stack: N K D. None: all. What the last
                layer makes of each token by itself is made of these alone. Without intermediates.

        Raises:
            InputError: memory is missing, is not read, or has no segments for media; a prefix or a state without
                causal; an intermediate that is no layer; a span with a state, with halting or of reversible layers;
                what a mixer or a feed-forward cannot.
        """
        span = range(self.spec.depth) if span is None else span
        self._check(causal, prefix, memory, intermediates, span)
        self._check_span(span, state)
        self._check_abilities(tokens, causal, prefix, state)
        past = state or StackState(())
        if state is not None and not causal:
            raise InputError("A state goes on from earlier tokens, which saw no later ones: hand in causal=True.")
        if past.pos is not None:
            if prefix is not None and past.prefix is None:
                raise InputError("A prefix belongs to the first of the calls that go on from one another.")
            prefix = past.prefix
        pos, valid, segment = described(past, tokens)
        mask = Mask(causal, prefix, valid, tokens.segment, segment, trailing and state is None)
        tokens, view = self._viewed(tokens, pos, mask)
        view = self.viewing.complete(view, tokens.x, pos.shape[1])
        reading = self.viewing.reading(tokens, memory, media, state is not None)
        x = tokens.x  # B L D
        if span.start == 0:
            x = self.input_dropout(self.input_norm(self.embedding_dropout(self.position.embed(x, tokens.pos))))
        ran = self._run(x, view, reading, None if state is None else past.layers, span, intermediates, read)
        x = self.output_dropout(self.norm(ran.x)) if span.stop == self.spec.depth else ran.x
        last = None if media is None else media[:, -1]
        after = None if state is None else StackState(ran.states, pos, valid, segment, prefix, last, past.at)
        # Not tokens._replace: a compiled stack would return a tuple without members (PyTorch 2.11).
        left = (tokens.pos, tokens.valid, tokens.segment) if read is None else (picked(tokens.pos, read), None, None)
        return StackOutput(Tokens(x, *left), after, ran.aux, ran.intermediates)

    def _viewed(self, tokens: Tokens, pos: Tensor, mask: Mask) -> tuple[Tokens, View]:
        """The tokens to work on, and what they may look at: of all that were handed in, where one process has them."""
        return tokens, self.viewing.view(tokens, pos, mask, self.position, self.training)

    def _run(
        self,
        x: Tensor,
        view: View,
        reading: View | None,
        past: tuple[LayerState, ...] | None,
        span: range,
        intermediates: Collection[int],
        read: Tensor | None,
    ) -> Ran:
        """Apply the layers of a span, in the way that the spec has them run."""
        assert read is None or not intermediates, "of the last layer, there are not all tokens"
        spec = self.spec
        signalled = spec.sharing is not None and spec.sharing.step_signal
        steps = [Step(i, self._layer(spec.applied[i]), self.drop_path[i], signalled) for i in span]
        if self.halting is None and not spec.reversible:
            return run_layers(x, steps, view, reading, past, intermediates, read)
        if self.halting is None:
            ran = run_reversibly(x, steps, view, past, intermediates)
        else:
            may_stop = self.may_stop and not (self.training or torch.compiler.is_compiling() or x.is_meta)
            ran = run_until_halted(x, steps, view, reading, past, intermediates, self.halting, may_stop)
        return ran if read is None else ran._replace(x=picked(ran.x, read))

    def _layer(self, index: int) -> Layer:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def _check(
        self, causal: bool, prefix: Tensor | None, memory: Tokens | None, intermediates: Collection[int], span: range
    ) -> None:
        reads = any(layer.cross is not None for layer in self.spec.layers[span.start : span.stop])
        if reads and memory is None:
            raise InputError("This stack's layers have a cross mixer, but no memory was handed in.")
        if memory is not None and not reads:
            raise InputError("Memory was handed in, but this stack's layers have no cross mixer: set LayerSpec.cross.")
        if prefix is not None and not causal:
            raise InputError("A prefix means something only in a causal pass: hand in causal=True.")
        wrong = [index for index in intermediates if not 0 <= index < self.spec.depth]
        if wrong:
            raise InputError(f"Intermediates {wrong} were asked for, but the layers are 0 to {self.spec.depth - 1}.")

    def _check_span(self, span: range, state: StackState | None) -> None:
        whole = range(self.spec.depth)
        if span != whole and (state is not None or self.halting is not None or self.spec.reversible):
            raise InputError("With a state, halting or two streams (reversible), layers run together: run them all.")
        if span.step != 1 or not span or span.start < 0 or span.stop > whole.stop:
            raise InputError(f"The layers {span} were to be run, but those that follow one another are {whole}.")

    def _check_abilities(self, tokens: Tokens, causal: bool, prefix: Tensor | None, state: StackState | None) -> None:
        asked: dict[Ability, bool] = {
            "causal": causal,
            "prefix": prefix is not None,
            "cache": state is not None,
            "padding": tokens.valid is not None,
            "packing": tokens.segment is not None,
            "bidirectional": not causal,
        }
        if not self.abilities >= {ability for ability, wanted in asked.items() if wanted}:
            self.spec.require_able("StackSpec", [ability for ability, wanted in asked.items() if wanted], "This pass")
