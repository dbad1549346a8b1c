"""A model: named stacks, named encoders over them, named heads."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from mmformer.errors import InputError, nearest
from mmformer.models.encoder import Encoder, EncoderSpec
from mmformer.models.head import Head, HeadSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a model's parameters.

    Attributes:
        stacks: by name.
        encoders: by name; each names its stack.
        heads: by name; each names the encoders that it reads.
    """

    stacks: dict[str, StackSpec]
    encoders: dict[str, EncoderSpec]
    heads: dict[str, HeadSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.encoders:
            raise InputError("model.encoders is empty: a model has one at least.")
        for name, encoder in self.encoders.items():
            _require_known(f"model.encoders.{name}.stack", encoder.stack, self.stacks, "stacks")
            _require_fit(name, encoder, self.stacks[encoder.stack])
        for name, head in self.heads.items():
            for encoder_name in head.reads:
                _require_known(f"model.heads.{name}", encoder_name, self.encoders, "encoders")
        unused = sorted(set(self.stacks) - {encoder.stack for encoder in self.encoders.values()})
        if unused:
            raise InputError(f"model.stacks.{unused[0]} is named by no encoder: remove it, or name it.")
        for kind, names in (("stacks", self.stacks), ("encoders", self.encoders), ("heads", self.heads)):
            for name in names:
                if not name.isidentifier():
                    raise InputError(f"model.{kind} has the name {name!r}; letters, digits and _ alone make a name.")

    @property
    def embedding_widths(self) -> dict[str, int]:
        """The width of every encoder's embedding."""
        return {
            name: encoder.embedding_width(self.stacks[encoder.stack].width) for name, encoder in self.encoders.items()
        }

    def build(self) -> Model:
        return Model(self)


class Model(nn.Module):
    """Runs every encoder whose modality a batch has, then, in their order, every head that finds what it reads."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stacks = nn.ModuleDict({name: stack.build() for name, stack in spec.stacks.items()})
        self.encoders = nn.ModuleDict(
            {name: encoder.build(spec.stacks[encoder.stack].width) for name, encoder in spec.encoders.items()}
        )
        self.heads = nn.ModuleDict({name: head.build(spec.embedding_widths) for name, head in spec.heads.items()})

    def forward(self, batch: Batch, intermediates: Collection[str] = ()) -> Outputs:
        """Encode a batch.

        Args:
            batch: modalities that are None are left out.
            intermediates: "encoder/layer", layer 0 the first, of hidden states to return.

        Raises:
            InputError: a batch that no encoder reads, an intermediate that does not exist, or a value of wrong shape.
        """
        outputs = Outputs({}, {}, {}, {}, {}, {})
        wanted = self._layers(intermediates)
        for name, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            value = getattr(batch, encoder.spec.tokenizer.modality)
            if value is None:
                continue
            stack = self.stacks[encoder.spec.stack]
            assert isinstance(stack, Stack)
            encoded = encoder(value, stack, wanted.get(name, ()))
            outputs.tokens[name] = encoded.tokens
            outputs.embedding[name] = encoded.embedding
            outputs.losses.update({f"{name}/{key}": term for key, term in encoded.aux.items()})
            outputs.intermediates.update({f"{name}/{key}": x for key, x in encoded.intermediates.items()})
        if not outputs.embedding:
            reads = sorted({encoder.tokenizer.modality for encoder in self.spec.encoders.values()})
            raise InputError(f"This model reads {' and '.join(reads)}, but the batch has none of it.")
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            made = head(outputs, batch)
            if made is not None and made.logits is not None:
                outputs.logits[name] = made.logits
            if made is not None and made.scale is not None:
                outputs.scale[name] = made.scale
        return outputs

    def initialise(self, seed: int) -> None:
        """Draw every parameter anew, each module from a stream of its own that (seed, its name) determines.

        A part that is added or removed leaves the others' first weights as they were.
        """
        for name, module in self.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if not own:
                continue
            reset = getattr(module, "reset_parameters", None)
            # A model that was built on the meta device would keep whatever its memory held before.
            assert reset is not None, f"{name} ({type(module).__name__}) holds {own[0][0]}, but has no reset_parameters"
            digest = hashlib.blake2b(f"{seed}/initialise/{name}".encode(), digest_size=8).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest, "little") >> 1)
                reset()

    def _layers(self, intermediates: Collection[str]) -> dict[str, list[int]]:
        wanted: dict[str, list[int]] = {}
        for item in intermediates:
            name, _, layer = item.rpartition("/")
            if name not in self.spec.encoders or not layer.isdigit():
                known = [f"{name}/0" for name in self.spec.encoders]
                raise InputError(f"'{item}' names no hidden state: write encoder/layer, such as {' or '.join(known)}.")
            wanted.setdefault(name, []).append(int(layer))
        return wanted


def _require_fit(name: str, encoder: EncoderSpec, stack: StackSpec) -> None:
    """Refuse a stack that an encoder cannot run, or that has no place for all of its tokens."""
    if stack.layer.cross is not None:
        raise InputError(
            f"model.stacks.{encoder.stack}.layer has a cross mixer, which reads a memory, but model.encoders.{name} "
            f"has none to hand in: leave layer.cross out."
        )
    if not isinstance(stack.position, LearnedPositionSpec):
        return
    for axis, size in zip(stack.position.axes, stack.position.sizes, strict=True):
        places = encoder.tokenizer.places[axis]
        if places is not None and places > size:
            raise InputError(
                f"model.stacks.{encoder.stack}.position has {size} places on axis {axis}, but the tokens of "
                f"model.encoders.{name} stand at up to {places} ({type(encoder.tokenizer).__name__}): raise "
                f"LearnedPositionSpec.sizes to {places}, or let the tokenizer make fewer."
            )


def _require_known(where: str, name: str, known: Mapping[str, object], kind: str) -> None:
    if name not in known:
        raise InputError(f"{where} is '{name}', but the {kind} are {', '.join(known)}.{nearest(name, known)}")
