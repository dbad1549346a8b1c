"""A decoder: text tokens over a stack that reads what encoders made, and the words that come next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.head import Source
from mmformer.models.insertion import content, inserted
from mmformer.models.media import check_media, last_media, numbered
from mmformer.models.projection import ProjectionSpec
from mmformer.models.transform import TransformSpec
from mmformer.nn.cross_entropy import linear_cross_entropy
from mmformer.nn.packing import pack, pack_beside
from mmformer.nn.prepacked import PackedLinear
from mmformer.nn.stack import Stack
from mmformer.nn.state import StackState
from mmformer.spec import require, require_probability
from mmformer.tokenizers.text import TextTokens, TextTokensSpec
from mmformer.types import Aux, LossTerm, Text, Tokens

Reading = Literal["cross", "prefix", "insert", "media"]

MEASURED = 1024
"""Tokens whose logits are held at once where texts are measured."""


@dataclass(frozen=True)
class DecoderSpec:
    """A writer of text.

    Attributes:
        tokenizer: what it writes. The decoder puts bos before a text itself, and learns to end it with eos.
        stack: the name of the stack that it runs, causally. Parts that name one stack share its weights.
        reads: encoder -> how its tokens are read: ``cross`` by the layers' cross mixers (Vaswani et al. 2017; CoCa),
            ``prefix`` as tokens before the text that all of it sees (Frozen, Tsimpoukelis et al. 2021), ``insert`` in
            the places of placeholders in the text (LLaVA, Liu et al. 2023, §4.1), ``media`` by the layers' cross
            mixers, where each token sees the last picture before it alone (Flamingo, Alayrac et al. 2022, §2.3.1; see
            ``models/media.py``). Empty: it writes from nothing, as a language model does.
        bridge: from an encoder's tokens to those of the text, where they are read as a prefix or inserted.
        content: leave special tokens out of what is read.
        placeholder: the id in whose places tokens are inserted, one for each, or that stands for one picture of media;
            a text that has none begins with them, after its first id. It is never learned to be written.
        shares: the text encoder whose token embeddings are this decoder's too; None: it has its own. Where logits are
            tied to them as well, one matrix serves three (Vaswani et al. 2017, §3.4). If the encoder runs the first
            ``layers`` of this decoder's stack, causally, a text that both read goes through them once
            (``models/going_on.py``).
        tied: logits are products with the token embeddings (Press and Wolf 2016); False: with a matrix of their own.
        logit_scale: factor on the tokens that logits are made of: width^-½ in T5's first models.
        transform: what stands between the tokens and their logits (BLIP, whose decoder is made of BERT); None: nothing.
        logit_bias: add a learned number to each id's logits, 0 at first.
        chunk: tokens whose logits over the vocabulary are held at once in training.
        smoothing: in training, the share of each target that is spread over the whole vocabulary (Vaswani et al. 2017,
            §5.4).
        packed: texts that differ in length share rows, and what each reads by cross mixers stands beside it, so that
            the stack does no work on padding (see ``EncoderSpec.packed``). What is written is the same.
    """

    tokenizer: TextTokensSpec
    stack: str
    reads: dict[str, Reading] = field(default_factory=dict)
    tied: bool = True
    chunk: int = 1024
    smoothing: float = 0.0
    packed: bool = False
    shares: str | None = None
    logit_scale: float = 1.0
    logit_bias: bool = False
    bridge: ProjectionSpec = ProjectionSpec(bias=True)
    content: bool = False
    placeholder: int | None = None
    transform: TransformSpec | None = None

    def __post_init__(self) -> None:
        ends = self.tokenizer.end and not self.tokenizer.begin
        require(ends, self, "tokenizer", "one with end and without begin: the decoder puts bos first itself")
        text = not self.tokenizer.padded
        require(text, self, "tokenizer", "one that is not padded: the decoder would learn to write padding")
        known = all(how in get_args(Reading) for how in self.reads.values())
        require(known, self, "reads", f"encoders, each read as one of {', '.join(get_args(Reading))}")
        require(self.chunk >= 1, self, "chunk", "at least 1")
        bridged = self.read_as("prefix") or self.read_as("insert")
        require(
            bool(bridged) or self.bridge == ProjectionSpec(bias=True), self, "bridge", "left alone: nothing needs one"
        )
        require(bool(self.reads) or not self.content, self, "content", "false where nothing is read")
        media = bool(self.read_as("media"))
        require(len(self.reads) == 1 or not media, self, "reads", "one encoder alone where it is read as media")
        holds = media or bool(self.read_as("insert"))
        told = "an id where something is inserted, or read as media"
        require(holds == (self.placeholder is not None), self, "placeholder", told)
        rows = self.tokenizer.rows
        known = self.placeholder is None or 0 <= self.placeholder < (rows or math.inf)
        require(known, self, "placeholder", f"an id, which is from 0 to {'the last' if rows is None else rows - 1}")
        require_probability(self, "smoothing")
        require(0 < self.logit_scale < math.inf, self, "logit_scale", "positive and finite")
        alone = not self.packed or not (media or self.read_as("prefix"))
        only = "false where an encoder is read as a prefix or as media: each text would need its own row"
        require(alone, self, "packed", only)

    def read_as(self, how: Reading) -> tuple[str, ...]:
        """The encoders that are read in one way."""
        return tuple(name for name, reading in self.reads.items() if reading == how)

    def build(self, width: int, sources: Mapping[str, Source], owner: TextTokens | None = None) -> Decoder:
        """The module over a stack of a width.

        Args:
            sources: every encoder.
            owner: the tokens of the encoder that it shares with.
        """
        return Decoder(self, width, sources, owner)


class Decoded(NamedTuple):
    x: Tensor  # B L D, for the text's tokens alone
    tokens: Tokens  # all that left the stack
    state: StackState | None
    aux: Aux


class Begun(NamedTuple):
    """What is made already of the text that a decoder reads."""

    x: Tensor  # B L D, what left the first layers of its stack
    layers: int  # how many


class Decoder(nn.Module):
    undecayed = ()

    def __init__(self, spec: DecoderSpec, width: int, sources: Mapping[str, Source], owner: TextTokens | None) -> None:
        super().__init__()
        assert (owner is None) == (spec.shares is None)
        self.spec = spec
        self.tokenizer = spec.tokenizer.build(width, owner)
        bridged = (*spec.read_as("prefix"), *spec.read_as("insert"))
        self.bridges = nn.ModuleDict({name: spec.bridge.build(sources[name].tokens, width) for name in bridged})
        self.special = {name: sources[name].special if spec.content else 0 for name in spec.reads}
        self.output = None if spec.tied else nn.Linear(width, len(self.tokenizer.table), bias=False)
        self.transform = None if spec.transform is None else spec.transform.build(width)
        self.logit_bias = nn.Parameter(torch.empty(self.tokenizer.size)) if spec.logit_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.logit_bias is not None:
            nn.init.zeros_(self.logit_bias)

    def forward(
        self,
        text: Text,
        memory: Mapping[str, Tokens],
        stack: Stack,
        start: Tensor | None = None,
        state: StackState | None = None,
        begun: Begun | None = None,
    ) -> Decoded:
        """Run over a text, or over the part of it that follows what a state holds.

        Args:
            text: ids that begin with bos, or go on from the state.
            memory: encoder -> what left its stack, for all that the spec reads.
            stack: the stack that the spec names.
            start: B, int64: where in each text the first id stands; None: at its beginning.
            state: what the last call returned, or ``stack.empty_state()``; None carries nothing.
            begun: to go on from, where the spec reads by cross mixers alone, and there is no state.

        Raises:
            InputError: an encoder that the spec reads is absent from memory, or its tokens and the text's placeholders
                do not agree.
        """
        missing = [name for name in self.spec.reads if name not in memory]
        if missing:
            raise InputError(f"A decoder reads '{missing[0]}', but there is nothing of it to read.")
        tokens: Tokens = self.tokenizer(text, start)
        span = None
        if begun is not None:
            tokens, span = tokens._replace(x=begun.x), range(begun.layers, stack.spec.depth)
        memory = {name: content(memory[name], self.special[name]) for name in self.spec.reads}
        length, prefix = tokens.x.shape[1], None
        first = state is None or state.pos is None
        if first and self.spec.read_as("insert"):
            parts = [self._bridged(name, memory[name]) for name in self.spec.read_as("insert")]
            x = inserted(tokens.x, torch.eq(text.ids, self.spec.placeholder or 0), parts)
            tokens = Tokens(x, tokens.pos, tokens.valid)
        if first and self.spec.read_as("prefix"):
            before = [self._bridged(name, memory[name]) for name in self.spec.read_as("prefix")]
            number = sum(part.x.shape[1] for part in before)
            prefix = torch.full((len(tokens.x),), number, dtype=torch.int64, device=tokens.x.device)
            tokens = concatenate([*before, tokens])
        cross = [Tokens(*memory[name][:3]) for name in self.spec.read_as("cross")]  # all of it is seen by all
        read, media = (concatenate(cross) if cross else None), None
        for name in self.spec.read_as("media"):
            read = numbered(memory[name])
            media = last_media(text, self.spec.placeholder or 0, None if state is None else state.media)
            if first:
                check_media(media, read)
        if self.spec.packed and state is None and tokens.valid is not None:
            packed = pack(tokens)
            beside = None if read is None else pack_beside(packed, read).tokens
            output = stack(packed.tokens, causal=True, memory=beside, span=span)
            x = packed.unpack(output.tokens.x)
            return Decoded(x, Tokens(x, tokens.pos, tokens.valid), None, output.aux)
        output = stack(tokens, causal=True, prefix=prefix, memory=read, media=media, state=state, span=span)
        return Decoded(output.tokens.x[:, -length:], output.tokens, output.state, output.aux)

    @property
    def pieces(self) -> Tensor:
        """V D, what logits are products with: a row for each of the vocabulary's pieces, and none of the padding's."""
        weight = self.tokenizer.table if self.output is None else self.output.weight
        return weight[: self.tokenizer.size]

    def logits(self, x: Tensor, packed: PackedLinear | None = None) -> Tensor:
        """... D -> ... V; ``packed`` has the same pieces and bias, as products of few rows read them fastest."""
        x = self._transformed(x)
        return F.linear(x, self.pieces, self.logit_bias) if packed is None else packed(x)

    def loss(
        self, text: Text, memory: Mapping[str, Tokens], stack: Stack, begun: Begun | None = None
    ) -> tuple[LossTerm, Decoded]:
        """The cross-entropy of each of a text's ids, eos with them, after those before it; over ids."""
        text = self._with_places(text, memory)
        decoded = self(text.after(self.tokenizer.start), memory, stack, begun=begun)
        return self.loss_of(text, decoded.x), decoded

    def loss_of(self, text: Text, x: Tensor) -> LossTerm:
        """The same, of what left the stack: B L D."""
        real = text.real  # B L
        if self.spec.placeholder is not None:
            real = real & (text.ids != self.spec.placeholder)
        return LossTerm(self._cross_entropy(x, text.ids, real), real.sum().float())

    def _cross_entropy(self, x: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        """Of the ids that are wanted (B L, bool), each by what x (B L D) has made of those before it; summed."""
        smoothing = self.spec.smoothing if self.training else 0.0  # what is measured is what was written
        left = self._transformed(x[wanted])
        return linear_cross_entropy(left, self.pieces, ids[wanted], self.spec.chunk, smoothing, self.logit_bias)

    def nats(self, text: Text, memory: Mapping[str, Tokens], stack: Stack) -> Tensor:
        """The cross-entropy of each text, eos with it, summed over its ids: B, float64."""
        return self.nats_of(text, self(text.after(self.tokenizer.start), memory, stack).x)

    def nats_of(self, text: Text, x: Tensor) -> Tensor:
        """The same, of what left the stack: B L D."""
        real = text.real  # B L
        left, wanted, row = x[real], text.ids[real], real.nonzero()[:, 0]
        nats = torch.zeros(len(text.ids), dtype=torch.float64, device=x.device)
        for begin in range(0, len(left), MEASURED):
            part = slice(begin, begin + MEASURED)
            logits = self.logits(left[part]).float()
            nats.index_add_(0, row[part], F.cross_entropy(logits, wanted[part], reduction="none").double())
        return nats

    def places(self, memory: Mapping[str, Tokens]) -> int:
        """How many placeholders a text needs for what was read."""
        number = sum(memory[name].x.shape[1] - self.special[name] for name in self.spec.read_as("insert"))
        for name in self.spec.read_as("media"):
            segment = memory[name].segment
            number += 1 if segment is None else int(segment.max())
        return number

    def _with_places(self, text: Text, memory: Mapping[str, Tokens]) -> Text:
        """A batch of texts that begin with the placeholders that they need, where none of them has any."""
        placeholder = self.spec.placeholder
        if placeholder is None or (text.ids == placeholder).any():
            return text
        number = self.places(memory)
        ids = torch.cat((text.ids.new_full((len(text.ids), number), placeholder), text.ids), dim=1)
        valid = None if text.valid is None else F.pad(text.valid, (number, 0), value=True)
        return Text(ids, text.lengths + number, valid, None if text.types is None else F.pad(text.types, (number, 0)))

    def _transformed(self, x: Tensor) -> Tensor:
        x = x if self.transform is None else self.transform(x)
        return x if self.spec.logit_scale == 1 else x * self.spec.logit_scale

    def _bridged(self, name: str, tokens: Tokens) -> Tokens:
        return Tokens(self.bridges[name](tokens.x), tokens.pos, tokens.valid)


def concatenate(parts: list[Tokens]) -> Tokens:
    """Tokens of one width, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    x = torch.cat([part.x for part in parts], dim=1)
    pos = torch.cat([part.pos for part in parts], dim=1)
    if all(part.valid is None for part in parts):
        return Tokens(x, pos)
    valid = [x.new_ones(part.x.shape[:2], dtype=torch.bool) if part.valid is None else part.valid for part in parts]
    return Tokens(x, pos, torch.cat(valid, dim=1))
