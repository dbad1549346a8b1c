"""A model: named stacks, named encoders and decoders over them, named heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from torch import nn

from mmformer.errors import InputError, nearest
from mmformer.models.decoder import Begun, Decoder, DecoderSpec
from mmformer.models.encoder import Encoder, EncoderSpec
from mmformer.models.exits import EarlyExitHeadSpec, exits_of
from mmformer.models.first_weights import initialise
from mmformer.models.fit import require_fit, require_places
from mmformer.models.going_on import begun
from mmformer.models.head import Head, HeadSpec, Shared, Source
from mmformer.models.pixel_head import PixelHeadSpec
from mmformer.nn.ability import Ability
from mmformer.nn.patient import patient
from mmformer.nn.stack import Stack, StackSpec
from mmformer.tokenizers.text import TextEncoder, TextTokens, TextTokensSpec
from mmformer.types import Batch, Outputs

S = TypeVar("S")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a model's parameters.

    Attributes:
        stacks: by name.
        encoders: by name; each names its stack.
        decoders: by name; each names its stack and the encoders that it reads.
        heads: by name; each names the encoders that it reads.
    """

    stacks: dict[str, StackSpec]
    encoders: dict[str, EncoderSpec] = field(default_factory=dict)
    decoders: dict[str, DecoderSpec] = field(default_factory=dict)
    heads: dict[str, HeadSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.encoders and not self.decoders:
            raise InputError("model.encoders and model.decoders are empty: a model has one of them at least.")
        for name, encoder in self.encoders.items():
            _require_known(f"model.encoders.{name}.stack", encoder.stack, self.stacks, "stacks")
            require_fit(name, encoder, self.stacks[encoder.stack])
        for name, decoder in self.decoders.items():
            _require_known(f"model.decoders.{name}.stack", decoder.stack, self.stacks, "stacks")
            for read in decoder.reads:
                _require_known(f"model.decoders.{name}.reads", read, self.encoders, "encoders")
            self._require_readable(name, decoder)
            self._require_shareable(name, decoder)
        for number, (name, head) in enumerate(self.heads.items()):
            for encoder_name in head.reads:
                _require_known(f"model.heads.{name}", encoder_name, self.encoders, "encoders")
            head.check(f"model.heads.{name}", self.sources, dict(islice(self.heads.items(), number)))
            if isinstance(head, PixelHeadSpec):
                _require_known(f"model.heads.{name}.stack", head.stack, self.stacks, "stacks")
                head.check_stack(f"model.heads.{name}", self.stacks[head.stack])
            if isinstance(head, EarlyExitHeadSpec):
                encoder = self.encoders[head.encoder]
                head.check_stack(f"model.heads.{name}", self.stacks[encoder.stack])
                if encoder.resampler is not None or encoder.layers is not None or encoder.class_last:
                    raise InputError(
                        f"model.heads.{name} lets samples leave a stack early, which goes with no resampler, layers or "
                        f"class_last of model.encoders.{head.encoder}: leave one of them out."
                    )
                if head.threshold is not None:
                    self.require_one_reader(head.encoder)
        unused = sorted(set(self.stacks) - self.stacks_run)
        if unused:
            raise InputError(f"model.stacks.{unused[0]} is named by no encoder or decoder: remove it, or name it.")
        for kind in ("stacks", "encoders", "decoders", "heads"):
            for name in getattr(self, kind):
                if not name.isidentifier():
                    raise InputError(f"model.{kind} has the name {name!r}; letters, digits and _ alone make a name.")
        self._require_one_tokenizer()
        twice = sorted(set(self.encoders) & set(self.decoders))
        if twice:
            raise InputError(f"model.encoders and model.decoders both have the name '{twice[0]}': rename one.")

    def _require_one_tokenizer(self) -> None:
        """Refuse text tokenizers that would need different ids in one field of Batch."""
        reads = {e.tokenizer for e in self.encoders.values() if isinstance(e.tokenizer, TextTokensSpec)}
        for kind, tokenizers in (("encoders", reads), ("decoders", {d.tokenizer for d in self.decoders.values()})):
            if len(tokenizers) > 1:
                raise InputError(
                    f"The model's text {kind} differ in their tokenizers, but a batch has one kind of ids."
                )

    def _require_readable(self, name: str, decoder: DecoderSpec) -> None:
        """Refuse a decoder whose stack cannot read what it is to read."""
        where, stack = f"model.decoders.{name}", self.stacks[decoder.stack]
        cross = (*decoder.read_as("cross"), *decoder.read_as("media"))
        if cross and not stack.reads_memory:
            raise InputError(
                f"{where} reads '{cross[0]}' through cross mixers, but the layers of model.stacks.{decoder.stack} have "
                f"none: set its layer.cross, or read it as a prefix."
            )
        if not cross and stack.reads_memory:
            raise InputError(
                f"model.stacks.{decoder.stack}.layer has a cross mixer, but {where} reads no encoder by cross: add one "
                f"to its reads, or leave layer.cross out."
            )
        memory_width = stack.memory_width or stack.width
        for read in cross:
            width = self.token_widths[read]
            if width != memory_width:
                raise InputError(
                    f"{where} reads '{read}', whose tokens are {width} wide, but model.stacks.{decoder.stack} reads a "
                    f"memory of width {memory_width}: set its memory_width to {width}."
                )
        needed: list[Ability] = ["causal", "cache", "padding"]
        needed += ["prefix"] if decoder.read_as("prefix") else []
        stack.require_able(f"model.stacks.{decoder.stack}", needed, where)
        require_places(where, decoder.tokenizer.places, decoder.tokenizer, decoder.stack, stack)
        for read in decoder.read_as("prefix"):
            encoder = self.encoders[read]
            require_places(where, encoder.places, encoder.resampler or encoder.tokenizer, decoder.stack, stack)

    def _require_shareable(self, name: str, decoder: DecoderSpec) -> None:
        """Refuse a decoder whose token embeddings cannot be those of the encoder that it is to share with."""
        if decoder.shares is None:
            return
        _require_known(f"model.decoders.{name}.shares", decoder.shares, self.encoders, "encoders")
        encoder = self.encoders[decoder.shares]
        theirs, ours = encoder.tokenizer, decoder.tokenizer
        told = f"model.decoders.{name} shares the token embeddings of model.encoders.{decoder.shares}"
        if not isinstance(theirs, TextTokensSpec):
            raise InputError(f"{told}, but that reads {theirs.modality}: name a text encoder, or leave shares out.")
        widths = self.stacks[encoder.stack].width, self.stacks[decoder.stack].width
        found: dict[str, tuple[object, object]] = {"width of the stack": widths, "rows": (theirs.rows, ours.rows)}
        if ours.rows is None:  # otherwise ids may be of other words where they are written (Marian's two halves)
            found["vocabulary"] = theirs.vocabulary, ours.vocabulary
        for key, (there, here) in found.items():
            if there != here:
                raise InputError(f"{told}, but its {key} is {here!r}, and there it is {there!r}: make them the same.")

    def require_one_reader(self, encoder: str) -> None:
        """Refuse that samples leave an encoder early which others than the head that lets them read.

        Raises:
            InputError: who reads it.
        """
        readers = [f"model.decoders.{name}" for name, decoder in self.decoders.items() if encoder in decoder.reads]
        readers += [f"model.heads.{name}" for name, head in self.heads.items() if encoder in head.reads]
        if len(readers) > 1:
            raise InputError(
                f"A threshold lets samples leave the encoder '{encoder}' early, but {' and '.join(readers)} read it, "
                f"and not all of them have exits there: set the threshold to null."
            )

    def reads_tokens(self, encoder: str) -> bool:
        """Whether a decoder or a head reads the tokens of an encoder, and not its embedding alone."""
        by_decoders = any(encoder in (*decoder.reads, decoder.shares) for decoder in self.decoders.values())
        return by_decoders or any(head.reads_tokens and encoder in head.reads for head in self.heads.values())

    @property
    def stacks_run(self) -> set[str]:
        """The names of the stacks that its other parts name."""
        used = {part.stack for part in self.encoders.values()} | {part.stack for part in self.decoders.values()}
        return used | {head.runs for head in self.heads.values() if head.runs is not None}

    @property
    def token_widths(self) -> dict[str, int]:
        """The width of the tokens that every encoder hands on."""
        return {name: encoder.token_width(self.stacks[encoder.stack].width) for name, encoder in self.encoders.items()}

    @property
    def embedding_widths(self) -> dict[str, int]:
        """The width of every encoder's embedding."""
        return {
            name: encoder.embedding_width(self.stacks[encoder.stack].width) for name, encoder in self.encoders.items()
        }

    @property
    def sources(self) -> dict[str, Source]:
        """The encoders, as heads know them."""
        tokens, embeddings = self.token_widths, self.embedding_widths
        return {
            name: Source(embeddings[name], tokens[name], encoder.special, encoder.reads_text, encoder.patches)
            for name, encoder in self.encoders.items()
        }

    def modalities_of(self, encoders: Iterable[str]) -> set[str]:
        """What some encoders read."""
        return {self.encoders[name].tokenizer.modality for name in encoders}

    def text_encoders(self) -> dict[str, TextEncoder]:
        """The host's half of the model's text tokenizers, by the field of Batch that they fill."""
        reads = [e.tokenizer for e in self.encoders.values() if isinstance(e.tokenizer, TextTokensSpec)]
        writes = [decoder.tokenizer for decoder in self.decoders.values()]
        found = {"text": [*reads, *writes], "target": writes}
        return {name: tokenizers[0].encoder() for name, tokenizers in found.items() if tokenizers}

    def build(self) -> Model:
        return Model(self)


class Model(nn.Module):
    """Runs every encoder whose modality a batch has; every decoder whose text it has, and which finds what it reads;
    then, in their order, every head that finds what it reads.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = {name: stack.width for name, stack in spec.stacks.items()}
        self.stacks = _built("stacks", spec.stacks, lambda stack: stack.build())
        self.encoders = _built("encoders", spec.encoders, lambda encoder: encoder.build(widths[encoder.stack]))
        self.decoders = _built("decoders", spec.decoders, self._decoder)
        shared = Shared(self._texts(), {name: self.stack_of(name) for name in self.stacks})
        self.heads = _built("heads", spec.heads, lambda head: head.build(spec.sources, shared))

    def forward(
        self, batch: Batch, intermediates: Collection[str] = (), decode: bool = True, tokens: bool = True
    ) -> Outputs:
        """Encode a batch, and weigh what decoders would write.

        Args:
            batch: modalities that are None are left out.
            intermediates: "encoder/layer", layer 0 the first, of hidden states to return.
            decode: run the decoders; False where only embeddings are wanted.
            tokens: return all that leaves encoders. False: the tokens of an encoder that no decoder or head reads may
                be left out, and those are not computed to the end that its pool does not read.

        Raises:
            InputError: a batch that nothing here reads, an intermediate that does not exist, or a value of wrong shape.
        """
        outputs = Outputs.empty()
        wanted = self._layers(intermediates)
        for name, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            value = getattr(batch, encoder.spec.tokenizer.modality)
            if value is None:
                continue
            exits = exits_of(name, self.heads.values(), self.training)
            if exits is not None and exits.sure is not None:
                self.spec.require_one_reader(name)
            seen = batch.seen if encoder.spec.tokenizer.modality == "image" else None
            stack, whole = self.stack_of(encoder.spec.stack), tokens or self.spec.reads_tokens(name)
            encoded = encoder(value, stack, wanted.get(name, ()), exits, seen, whole)
            if encoded.early is not None:
                outputs.early[name] = encoded.early
            if encoded.tokens is not None:
                outputs.tokens[name] = encoded.tokens
            outputs.embedding[name] = encoded.embedding
            outputs.aux.update({f"{name}/{key}": term for key, term in encoded.aux.items()})
            outputs.intermediates.update({f"{name}/{key}": x for key, x in encoded.intermediates.items()})
        for name, decoder in self.decoders.items():
            assert isinstance(decoder, Decoder)
            if not decode or batch.written is None or not decoder.spec.reads.keys() <= outputs.tokens.keys():
                continue
            stack, read = self.stack_of(decoder.spec.stack), outputs.tokens
            loss, decoded = decoder.loss(batch.written, read, stack, self._begun(decoder, batch, outputs))
            outputs.losses[name], outputs.tokens[name] = loss, decoded.tokens
            outputs.aux.update({f"{name}/{key}": term for key, term in decoded.aux.items()})
        if not (outputs.embedding or outputs.tokens) and (decode or batch.written is None):
            reads = sorted({encoder.tokenizer.modality for encoder in self.spec.encoders.values()})
            raise InputError(f"This model reads {' and '.join(reads) or 'text'}, but the batch has none of it.")
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            made = head(outputs, batch)
            for kind in ("logits", "scale", "bias", "exits"):
                value = None if made is None else getattr(made, kind)
                if value is not None:
                    getattr(outputs, kind)[name] = value
            if made is not None and made.loss is not None:
                outputs.losses[name] = made.loss
                outputs.aux.update({f"{name}/{key}": term for key, term in made.aux.items()})
        return outputs

    def _texts(self) -> dict[str, TextTokens]:
        tokenizers = {name: encoder.tokenizer for name, encoder in self.encoders.items()}
        return {name: tokens for name, tokens in tokenizers.items() if isinstance(tokens, TextTokens)}

    def _decoder(self, spec: DecoderSpec) -> Decoder:
        owner = None if spec.shares is None else self.encoders[spec.shares].tokenizer
        assert owner is None or isinstance(owner, TextTokens)
        return spec.build(self.spec.stacks[spec.stack].width, self.spec.sources, owner)

    def _begun(self, decoder: Decoder, batch: Batch, outputs: Outputs) -> Begun | None:
        """What the encoder that a decoder shares with has made already of what the decoder reads."""
        shared = decoder.spec.shares
        if shared is None or shared not in outputs.tokens:
            return None
        return begun(decoder, self.spec.encoders[shared], batch, outputs.tokens[shared])

    def stack_of(self, name: str) -> Stack:
        stack = self.stacks[name]
        assert isinstance(stack, Stack)
        return stack

    def for_many(self) -> Model:
        """Itself, or a copy with the same parameters that reads many values faster (``nn/patient.py``).

        While a copy is used, parameters are to stay as they are. On a CPU, a value's last bits then depend on how many
        were read before it.
        """
        return patient(self)

    def initialise(self, seed: int) -> None:
        """Draw every parameter anew: see ``models/first_weights.py``."""
        initialise(self, seed)

    def _layers(self, intermediates: Collection[str]) -> dict[str, list[int]]:
        wanted: dict[str, list[int]] = {}
        for item in intermediates:
            name, _, layer = item.rpartition("/")
            if name not in self.spec.encoders or not layer.isdigit():
                known = [f"{name}/0" for name in self.spec.encoders]
                raise InputError(f"'{item}' names no hidden state: write encoder/layer, such as {' or '.join(known)}.")
            wanted.setdefault(name, []).append(int(layer))
        return wanted


def _built(kind: str, specs: Mapping[str, S], build: Callable[[S], nn.Module]) -> nn.ModuleDict:
    """The parts of a kind; what one refuses is told with its key."""
    parts = nn.ModuleDict()
    for name, spec in specs.items():
        try:
            parts[name] = build(spec)
        except InputError as error:
            raise InputError(f"model.{kind}.{name}: {error}") from error
    return parts


def _require_known(where: str, name: str, known: Mapping[str, object], kind: str) -> None:
    if name not in known:
        raise InputError(f"{where} is '{name}', but the {kind} are {', '.join(known)}.{nearest(name, known)}")
