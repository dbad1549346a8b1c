"""An encoder: a modality tokenizer, the name of a stack, and what is made of the tokens that leave it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.exits import Exits, run_and_leave, weigh_exits
from mmformer.models.patch_dropout import chosen, drawn
from mmformer.models.projection import ProjectionSpec
from mmformer.nn.everywhere import knows_everywhere
from mmformer.nn.norm import NormSpec
from mmformer.nn.packing import Packed, pack
from mmformer.nn.pool import MeanPoolSpec, PoolSpec
from mmformer.nn.resampler import ResamplerSpec
from mmformer.nn.stack import Stack
from mmformer.spec import require, require_probability, told
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokens, TextTokensSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.types import SPECIAL, Audio, Aux, Early, Patches, Text, Tokens


@dataclass(frozen=True)
class EncoderSpec:
    """One modality's way through the model.

    Attributes:
        tokenizer: raw values to tokens.
        stack: the name of the stack that reads them. Encoders that name one stack share its weights.
        resampler: what left the stack to a fixed number of tokens, which pool, heads and decoders read in its place;
            None: they read what left the stack.
        pool: tokens to one vector.
        layers: how many layers of the stack it runs, the first ones, without the final norm: what others read is what
            left the last of these (LLaVA, Liu et al. 2023, reads the layer before the last). None: all, and the norm.
        norm: of that vector, before it is projected (timm's ``fc_norm``, which goes with a stack without a final norm);
            None: none.
        embedding: width of the embedding that the vector is projected to; None: the vector is the embedding.
        projection: how it is projected.
        causal: each token sees itself and those before it only (CLIP's text).
        class_token: put a learned token first, for a pool that reads it.
        class_last: put it behind a text instead, at the place that follows the longest text's last, so that it has seen
            all of a causal text (CoCa, Yu et al. 2022, §3.2). Those who read the tokens find it first all the same.
        class_shifted: with class_last: what is seen is shifted by one, as open_clip's CoCa was trained: the first
            token of padding is seen, and the class token sees itself only where there is no padding.
        registers: learned tokens that hold no content (Darcet et al. 2023), after the class token; or that a pool or a
            head reads by its place (DeiT's distillation token).
        packed: samples share rows where they differ in length, so that the stack does no work on padding. The result is
            the same (in training, but for what is by row: drop_path, and experts' balance and capacity); it pays where
            most are much shorter than the longest.
        patch_dropout: in training, the share of a picture's patches (or a sound's) that the stack never sees, drawn
            anew each time; an update costs as much less (FLIP, Li et al. 2023, §3). Special tokens stay. Where a batch
            says which patches are seen (``Batch.seen``), none are dropped besides.
    """

    tokenizer: TokenizerSpec
    stack: str
    pool: PoolSpec = field(default_factory=MeanPoolSpec)
    embedding: int | None = None
    projection: ProjectionSpec = ProjectionSpec()
    causal: bool = False
    class_token: bool = False
    registers: int = 0
    packed: bool = False
    patch_dropout: float = 0.0
    resampler: ResamplerSpec | None = None
    norm: NormSpec | None = None
    layers: int | None = None
    class_last: bool = False
    class_shifted: bool = False

    def __post_init__(self) -> None:
        require(self.embedding is None or self.embedding >= 1, self, "embedding", "None or at least 1")
        projected = self.embedding is not None or self.projection == ProjectionSpec()
        require(projected, self, "projection", "left out where embedding is None: there is none")
        require(self.layers is None or self.layers >= 1, self, "layers", "None or at least 1")
        require(self.registers >= 0, self, "registers", "at least 0")
        self._require_special()
        text = self.class_token and self.registers == 0 and isinstance(self.tokenizer, TextTokensSpec)
        require(text or not self.class_last, self, "class_last", "false, unless a class token alone goes with a text")
        require(self.class_last or not self.class_shifted, self, "class_shifted", "false where class_last is")
        require(
            not (self.packed and self.class_shifted), self, "packed", "false where class_shifted lets padding be seen"
        )
        require_probability(self, "patch_dropout")
        patches = self.tokenizer.modality != "text" or self.patch_dropout == 0
        require(patches, self, "patch_dropout", f"0 with {type(self.tokenizer).__name__}, which makes no patches")

    def _require_special(self) -> None:
        """Refuse a pool that would not find its special tokens, or that would find one that has seen itself alone."""
        needed, name = self.pool.special, type(self.pool).__name__
        if self.resampler is None:
            require(self.class_token or not needed, self, "class_token", f"true for {name}")
            least = max(0, needed - 1)
            require(self.registers >= least, self, "registers", f"at least {least} for {told(self.pool)}")
            blind = self.causal and self.pool.reads_first and not self.class_last
            require(not blind, self, "causal", f"false with {name}: the first token would see itself alone")
        else:
            has = needed <= self.resampler.class_query
            require(has, self, "resampler", f"one with as many class tokens as {told(self.pool)} reads, {needed}")

    def build(self, width: int) -> Encoder:
        """The module over a stack of a width."""
        return Encoder(self, width)

    def token_width(self, width: int) -> int:
        """The width of the tokens that it hands on, over a stack of a width."""
        return width if self.resampler is None else self.resampler.width_of(width)

    def embedding_width(self, width: int) -> int:
        """The width of its embeddings over a stack of a width."""
        return self.embedding or self.pool.embedding_width(self.token_width(width))

    @property
    def entering_places(self) -> tuple[int | None, ...]:
        """How many places the tokens that enter the stack take on each coordinate axis."""
        time, *others = self.tokenizer.places
        return (time + 1 if self.class_last and time is not None else time, *others)

    @property
    def special(self) -> int:
        """How many of the tokens that it hands on, the first, are special."""
        return 0 if self.resampler is not None else self.class_token + self.registers

    @property
    def patches(self) -> ImagePatchesSpec | None:
        """What cuts a picture into patches, where the others are those, one for each; None: they are not."""
        return self.tokenizer if self.resampler is None and isinstance(self.tokenizer, ImagePatchesSpec) else None

    @property
    def reads_text(self) -> bool:
        """Whether the others are those of a text, one for each id."""
        return self.resampler is None and isinstance(self.tokenizer, TextTokensSpec)

    @property
    def places(self) -> tuple[int | None, ...]:
        """How many places the tokens that it hands on take on each coordinate axis; None: it depends on its input."""
        return self.tokenizer.places if self.resampler is None else self.resampler.places


class Encoded(NamedTuple):
    tokens: Tokens | None  # None: nobody asked for them
    embedding: Tensor  # B E
    aux: Aux
    intermediates: dict[int, Tensor]
    early: Early | None  # where there are exits before the end


class Encoder(nn.Module):
    """Holds everything but the stack, which is handed in: the model owns it, and others may share it."""

    undecayed = ("special",)

    def __init__(self, spec: EncoderSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.tokenizer = spec.tokenizer.build(width)
        number = int(spec.class_token) + spec.registers
        self.special = nn.Parameter(torch.empty(number, width)) if number else None
        self.resampler = None if spec.resampler is None else spec.resampler.build(width)
        width = spec.token_width(width)
        self.pool = spec.pool.build(width)
        width = spec.pool.embedding_width(width)
        self.norm = nn.Identity() if spec.norm is None else spec.norm.build(width)
        self.projection = None if spec.embedding is None else spec.projection.build(width, spec.embedding)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.special is not None:
            nn.init.trunc_normal_(self.special, std=0.02)

    def forward(
        self,
        value: Tensor | Patches | Text | Audio,
        stack: Stack,
        intermediates: Collection[int] = (),
        exits: Exits | None = None,
        seen: Tensor | None = None,
        whole: bool = True,
    ) -> Encoded:
        """Encode one modality of a batch.

        Args:
            value: what the tokenizer reads; or rows of several pictures, B N 3 H W, each of which becomes a segment of
                what is read, where there is a resampler.
            stack: the stack that the spec names.
            intermediates: layers of it whose outputs are to be returned.
            exits: where samples may leave it before its end; None: nowhere.
            seen: B K, the numbers of the tokens of the tokenizer's that the stack sees; None: all.
            whole: hand on tokens. False: the embedding alone is wanted, and where its pool reads few of the tokens,
                the last layer is computed of those as far as they go alone.

        Raises:
            InputError: the tokenizer packs several segments into a row; one embedding would mix them. Ids are to stand
                everywhere, but the stack's mixers do not know such. Rows have several pictures, but nothing resamples.
        """
        if isinstance(value, Tensor) and value.ndim == 5:
            return self._several(value, stack, intermediates)
        if isinstance(value, Text) and value.everywhere is not None:
            _require_everywhere(stack)
        if self.spec.class_shifted and isinstance(value, Text):
            value = self._with_padding(value)
        tokens = self._tokens(value, seen)
        entering = self._marked(tokens)
        if exits is not None and exits.sure is not None and stack.may_stop and not intermediates:
            exited, aux = run_and_leave(stack, entering, self.spec.causal, self._embedded, exits)
            return Encoded(exited.tokens, exited.embedding, aux, {}, exited.early)
        packed = pack(entering) if self.spec.packed and entering.valid is not None else None
        asked = {*intermediates, *(() if exits is None else exits.layers)}
        read = None if whole or asked else self._read(entering, packed)
        output = stack(
            packed.tokens if packed else entering,
            causal=self.spec.causal,
            intermediates=asked,
            span=None if self.spec.layers is None else range(self.spec.layers),
            # Padding of texts is behind them, unless they say otherwise; what becomes of it, nothing reads.
            trailing=isinstance(value, Text) and value.valid is None and not (self.spec.class_last or packed),
            read=read,
        )
        if read is not None:
            return Encoded(None, self._projected(self.pool.of_places(output.tokens.x)), output.aux, {}, None)
        left, kept = output.tokens, output.intermediates
        if packed is not None:
            left = Tokens(packed.unpack(left.x), entering.pos, entering.valid)
            kept = {layer: packed.unpack(x) for layer, x in kept.items()}
        if self.special is not None and self.spec.class_last:
            marked = _put_first(self.special, tokens)
            left = Tokens(left.x.roll(1, dims=1), marked.pos, marked.valid)
            kept = {layer: x.roll(1, dims=1) for layer, x in kept.items()}
        if exits is None:
            return self._read_out(left, output.aux, kept)
        exited = weigh_exits(stack, left, kept, self._embedded, exits)
        kept = {layer: kept[layer] for layer in intermediates}
        return Encoded(exited.tokens, exited.embedding, output.aux, kept, exited.early)

    def _tokens(self, value: Tensor | Patches | Text | Audio, seen: Tensor | None) -> Tokens:
        """The tokenizer's tokens, those of them that the stack sees."""
        tokens: Tokens = self.tokenizer(value)
        if tokens.segment is not None:
            raise InputError(
                f"{type(self.spec.tokenizer).__name__} packs several segments into a row, but an encoder makes one "
                f"embedding of a row, with one class token and one set of registers: hand in one segment a row."
            )
        if seen is not None:
            return chosen(tokens, seen)
        return drawn(tokens, 1 - self.spec.patch_dropout) if self.training and self.spec.patch_dropout else tokens

    def _marked(self, tokens: Tokens) -> Tokens:
        """With special tokens in the places where the stack finds them."""
        if self.special is None:
            return tokens
        return self._put_last(self.special, tokens) if self.spec.class_last else _put_first(self.special, tokens)

    def _read_out(self, left: Tokens, aux: Aux, kept: dict[int, Tensor]) -> Encoded:
        """What is made of the tokens that left the stack: fewer, where they are resampled, and the embedding."""
        left = left if self.resampler is None else self.resampler(left)
        embedding = self._embedded(left)
        if self.resampler is not None and self.resampler.class_query:
            left = Tokens(left.x[:, 1:], left.pos[:, 1:])
        return Encoded(left, embedding, aux, kept, None)

    def _several(self, pictures: Tensor, stack: Stack, intermediates: Collection[int]) -> Encoded:
        """Rows of several pictures, B N 3 H W: each by itself, then those of a row one after the other.

        Segments number them, from 1. The embedding is the mean of theirs.
        """
        if self.resampler is None:
            raise InputError(
                f"A row has {pictures.shape[1]} pictures, which stand side by side as a resampler leaves them: give "
                f"the encoder a resampler, or hand in one picture a row, of shape (batch, 3, height, width)."
            )
        each = self.forward(pictures.flatten(0, 1), stack, intermediates)
        batch, number = pictures.shape[:2]
        assert each.tokens is not None, "they were asked for"
        x, pos = (_joined(value, batch) for value in each.tokens[:2])
        numbers = torch.arange(1, number + 1, device=x.device).repeat_interleave(each.tokens.x.shape[1])
        kept = {layer: _joined(value, batch) for layer, value in each.intermediates.items()}
        embedding = each.embedding.view(batch, number, -1).mean(1)
        return Encoded(Tokens(x, pos, None, numbers.expand(batch, -1)), embedding, each.aux, kept, None)

    def _with_padding(self, text: Text) -> Text:
        """A text with one more token of padding, where the context has room for it."""
        assert isinstance(self.tokenizer, TextTokens)
        if text.ids.shape[1] >= self.tokenizer.spec.context_length:
            return text
        ids = F.pad(text.ids, (0, 1), value=self.tokenizer.special.pad or 0)
        return Text(
            ids, text.lengths, F.pad(text.real, (0, 1)), None if text.types is None else F.pad(text.types, (0, 1))
        )

    def _put_last(self, special: Tensor, tokens: Tokens) -> Tokens:
        """A text's tokens, then the class token."""
        batch = len(tokens.x)
        x = torch.cat((tokens.x, special.to(tokens.x.dtype).expand(batch, -1, -1)), dim=1)
        place = tokens.pos.new_tensor((self.spec.tokenizer.places[0] or 0, *(0,) * (tokens.pos.shape[2] - 1)))
        pos = torch.cat((tokens.pos, place.expand(batch, 1, -1)), dim=1)
        real = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
        parts = (real.new_ones(batch, 1), real) if self.spec.class_shifted else (real, real.new_ones(batch, 1))
        return Tokens(x, pos, torch.cat(parts, dim=1))

    def _read(self, tokens: Tokens, packed: Packed | None) -> Tensor | None:
        """Which tokens, counted through all rows of the stack, the pool reads alone: B K; None: all."""
        no_places = self.spec.class_last or self.resampler is not None
        places = None if no_places else self.pool.places(tokens)
        if places is None:
            return None
        if packed is not None and not bool(packed.valid.any(1).all()):
            return None  # an empty sample has no place
        number = torch.arange(tokens.x[..., 0].numel(), device=places.device).view(tokens.x.shape[:2])  # B L
        return (number if packed is None else packed.place).gather(1, places)

    def _embedded(self, left: Tokens) -> Tensor:
        return self._projected(self.pool(left))

    def _projected(self, pooled: Tensor) -> Tensor:
        embedding: Tensor = self.norm(pooled)
        return embedding if self.projection is None else self.projection(embedding)


def _joined(x: Tensor, batch: int) -> Tensor:
    """What belongs to the pictures of a row, one after the other: (B N) L D -> B (N L) D."""
    return x.reshape(batch, -1, x.shape[2])


def _require_everywhere(stack: Stack) -> None:
    """Refuse a stack to which it makes no difference which tokens stand everywhere."""
    if not any(layer.mixer is not None and knows_everywhere(layer.mixer) for layer in stack.spec.layers):
        raise InputError(
            "Some ids are to see all and be seen by all (global_mask), but the encoder's mixers know no such tokens: "
            "take GlobalAttentionSpec, or give their pattern an EverywhereSpec; or leave the mask out."
        )


def _put_first(special: Tensor, tokens: Tokens) -> Tokens:
    """Special tokens, then the rest, all of one segment."""
    batch, number = tokens.x.shape[0], special.shape[0]
    x = torch.cat((special.to(tokens.x.dtype).expand(batch, -1, -1), tokens.x), dim=1)
    shared = tokens.pos[:1] if tokens.pos.stride(0) == 0 else tokens.pos
    place = SPECIAL - torch.arange(number, device=shared.device)  # each has one of its own
    nowhere = place[None, :, None].expand(shared.shape[0], -1, shared.shape[2])
    pos = torch.cat((nowhere, shared), dim=1).expand(batch, -1, -1)
    valid = None
    if tokens.valid is not None:
        valid = torch.cat((tokens.valid.new_ones(batch, number), tokens.valid), dim=1)
    return Tokens(x, pos, valid)
