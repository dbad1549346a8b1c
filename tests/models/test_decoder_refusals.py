"""What does not fit is refused when a decoder or its model is described, with what to change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tiny import VOCABULARY

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassificationHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec

WORDS = TextTokensSpec(VOCABULARY, context_length=16)
PLAIN = LayerSpec(AttentionSpec(2))
CROSSED = LayerSpec(AttentionSpec(2), cross=AttentionSpec(2))
EYE = EncoderSpec(ImagePatchesSpec(patch=8), "eye")
READER = EncoderSpec(WORDS, "eye")


def model(reads: dict[str, Any], layer: LayerSpec = PLAIN, stack: str = "writer", **changes: Any) -> ModelSpec:
    """An encoder ``image`` of width 24 and a decoder ``caption`` of width 16; ``changes`` are fields of the stack."""
    stacks = {"eye": StackSpec(24, 1, PLAIN), "writer": StackSpec(16, 1, layer, **changes)}
    return ModelSpec(stacks, {"image": EYE}, {"caption": DecoderSpec(WORDS, stack, reads)})


CROSS: dict[str, Any] = {"image": "cross"}
PREFIX: dict[str, Any] = {"image": "prefix"}
FITS = model(PREFIX)


def with_decoders(**decoders: DecoderSpec) -> ModelSpec:
    return dataclasses.replace(FITS, decoders=decoders)


WRONG: list[tuple[Any, str]] = [
    (
        lambda: DecoderSpec(dataclasses.replace(WORDS, begin=True), "writer"),
        "DecoderSpec.tokenizer must be one with end and without begin: the decoder puts bos first itself, but is",
    ),
    (
        lambda: DecoderSpec(dataclasses.replace(WORDS, end=False), "writer"),
        "DecoderSpec.tokenizer must be one with end and without begin",
    ),
    (lambda: DecoderSpec(WORDS, "writer", chunk=0), "DecoderSpec.chunk must be at least 1, but is 0."),
    (lambda: DecoderSpec(WORDS, "writer", smoothing=1.0), "DecoderSpec.smoothing must be at least 0 and below 1"),
    (
        lambda: DecoderSpec(WORDS, "writer", {"image": "gated"}),  # type: ignore[dict-item]
        "DecoderSpec.reads must be encoders, each read as one of cross, prefix, insert, media, but is",
    ),
    (
        lambda: model(PREFIX, stack="writr"),
        "model.decoders.caption.stack is 'writr', but the stacks are eye, writer. Did you mean 'writer'?",
    ),
    (
        lambda: model({"imag": "prefix"}),
        "model.decoders.caption.reads is 'imag', but the encoders are image. Did you mean 'image'?",
    ),
    (
        lambda: model({"caption": "prefix"}),
        "model.decoders.caption.reads is 'caption', but the encoders are image.",
    ),
    (
        lambda: model(CROSS),
        "model.decoders.caption reads 'image' through cross mixers, but the layers of model.stacks.writer have none: "
        "set its layer.cross, or read it as a prefix.",
    ),
    (
        lambda: model(PREFIX, CROSSED),
        "model.stacks.writer.layer has a cross mixer, but model.decoders.caption reads no encoder by cross: add one to "
        "its reads, or leave layer.cross out.",
    ),
    (
        lambda: model(CROSS, CROSSED),
        "model.decoders.caption reads 'image', whose tokens are 24 wide, but model.stacks.writer reads a memory of "
        "width 16: set its memory_width to 24.",
    ),
    (
        lambda: model(CROSS, CROSSED, memory_width=20),
        "model.decoders.caption reads 'image', whose tokens are 24 wide, but model.stacks.writer reads a memory of "
        "width 20",
    ),
    (
        lambda: model(PREFIX, position=LearnedPositionSpec((0,), (15,))),
        "model.stacks.writer.position has 15 places on axis 0, but the tokens of model.decoders.caption stand at up to "
        "16 (TextTokensSpec)",
    ),
    (
        lambda: ModelSpec(
            {"eye": StackSpec(24, 1, PLAIN), "writer": StackSpec(16, 1, PLAIN, LearnedPositionSpec((0,), (16,)))},
            {"image": EYE, "text": EncoderSpec(dataclasses.replace(WORDS, context_length=20), "eye")},
            {"caption": DecoderSpec(WORDS, "writer", {"text": "prefix"})},
        ),
        "model.stacks.writer.position has 16 places on axis 0, but the tokens of model.decoders.caption stand at up to "
        "20 (TextTokensSpec)",
    ),
    (
        lambda: dataclasses.replace(
            model(CROSS, CROSSED, memory_width=24), encoders={"image": EYE, "b": _on("writer")}
        ),
        "model.stacks.writer.layer has a cross mixer, which reads a memory, but model.encoders.b has none to hand in",
    ),
    (
        lambda: with_decoders(
            caption=DecoderSpec(WORDS, "writer"),
            other=DecoderSpec(dataclasses.replace(WORDS, context_length=9), "writer"),
        ),
        "The model's text decoders differ in their tokenizers, but a batch has one kind of ids.",
    ),
    (
        lambda: dataclasses.replace(
            FITS, encoders={"image": EYE, "a": READER, "b": EncoderSpec(dataclasses.replace(WORDS, begin=True), "eye")}
        ),
        "The model's text encoders differ in their tokenizers, but a batch has one kind of ids.",
    ),
    (
        lambda: with_decoders(image=DecoderSpec(WORDS, "writer")),
        "model.encoders and model.decoders both have the name 'image': rename one.",
    ),
    (
        lambda: with_decoders(**{"a caption": DecoderSpec(WORDS, "writer")}),
        "model.decoders has the name 'a caption'; letters, digits and _ alone make a name.",
    ),
    (lambda: with_decoders(), "model.stacks.writer is named by no encoder or decoder: remove it, or name it."),
    (
        lambda: dataclasses.replace(FITS, heads={"h": ClassificationHeadSpec("caption", 2)}),
        "model.heads.h is 'caption', but the encoders are image.",
    ),
    (lambda: ModelSpec({}), "model.encoders and model.decoders are empty: a model has one of them at least."),
]


def _on(stack: str) -> EncoderSpec:
    return dataclasses.replace(EYE, stack=stack)


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: value[:60] if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_what_fits_is_not_refused() -> None:
    for made in (
        FITS,
        model(CROSS, CROSSED, memory_width=24),
        model(PREFIX, position=LearnedPositionSpec((0,), (16,))),
        model({}, stack="writer"),
        with_decoders(caption=DecoderSpec(WORDS, "writer"), other=DecoderSpec(WORDS, "writer", PREFIX, tied=False)),
        dataclasses.replace(FITS, encoders={"image": EYE, "text": READER}),
    ):
        assert made.build().spec is made
    shorter = dataclasses.replace(READER, tokenizer=dataclasses.replace(WORDS, context_length=8))
    dataclasses.replace(FITS, encoders={"image": EYE, "text": shorter})  # another text than that which is written
