"""What an encoder and its stack must agree on: memory, places, and one segment a row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.pool import AttentionPoolSpec, ClassTokenPoolSpec, LastPoolSpec, MeanPoolSpec, PoolSpec
from mmformer.nn.position import LearnedPositionSpec, PositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Text, Tokens

LAYER = LayerSpec(AttentionSpec(heads=2))
IDS = TextTokensSpec(VOCABULARY, context_length=16)
PATCHES = ImagePatchesSpec(patch=8)


def over(position: PositionSpec, **encoders: Any) -> ModelSpec:
    stack = StackSpec(16, 1, LAYER, position)
    return ModelSpec({"trunk": stack}, {name: EncoderSpec(value, "trunk") for name, value in encoders.items()})


def test_a_stack_with_a_cross_mixer_cannot_encode() -> None:
    stack = StackSpec(16, 1, dataclasses.replace(LAYER, cross=AttentionSpec(2)))
    with pytest.raises(InputError) as caught:
        ModelSpec({"trunk": stack}, {"image": EncoderSpec(PATCHES, "trunk")})
    assert str(caught.value) == (
        "model.stacks.trunk.layer has a cross mixer, which reads a memory, but model.encoders.image has none to hand "
        "in: leave layer.cross out, or let the encoder run the layers before it alone."
    )


def test_tokenizers_say_how_many_places_they_take() -> None:
    assert IDS.places == (16, 1, 1)
    assert PATCHES.places == ConvolutionalStemSpec().places == (None, None, None)
    batch = tiny_batch(["a large red square on the left " * 9])
    model = over(PositionSpec(), text=IDS).build()
    model.initialise(0)
    pos = model(batch._replace(image=None)).tokens["text"].pos
    assert (pos.amax((0, 1)) + 1).tolist() == list(IDS.places)


def test_padding_behind_a_causal_text_changes_nothing_of_it() -> None:
    """Nor is there a mask of it, where it is behind for certain; where a text says which ids are real, there is."""
    spec = over(LearnedPositionSpec((0,), (16,)), text=IDS)
    text = dataclasses.replace(spec.encoders["text"], causal=True, pool=LastPoolSpec())
    model = dataclasses.replace(spec, encoders={"text": text}).build()
    model.initialise(0)
    batch = tiny_batch(["a large red square on the left", "a cat", ""])._replace(image=None)
    assert batch.text is not None and batch.text.valid is None
    real, asked = batch.text.real, list[tuple[bool, bool]]()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        lowered = Mask.sdpa

        def told(self: Mask, *rest: Any) -> tuple[Tensor | None, bool]:
            mask, causal = lowered(self, *rest)
            asked.append((mask is None, causal))
            return mask, causal

        patch.setattr(Mask, "sdpa", told)
        made, before = model(batch), {*asked}
        asked.clear()
        said = model(batch._replace(text=batch.text._replace(valid=real)))
    assert (before, {*asked}) == ({(True, True)}, {(False, False)})
    assert_close(made.embedding["text"], said.embedding["text"])
    assert_close(made.tokens["text"].x[real], said.tokens["text"].x[real])
    assert torch.equal(made.tokens["text"].valid, real)


@pytest.mark.parametrize(
    "position",
    [
        LearnedPositionSpec((0,), (16,)),
        LearnedPositionSpec((0,), (99,)),
        LearnedPositionSpec((1, 0), (2, 16)),
        LearnedPositionSpec((1, 2), (2, 2)),
    ],
)
def test_positions_that_are_enough(position: LearnedPositionSpec) -> None:
    model = over(position, text=IDS, image=PATCHES).build()
    model.initialise(0)
    made = model(tiny_batch(["a large red square on the left " * 9, ""]))
    assert made.embedding["text"].isfinite().all()


@pytest.mark.parametrize("position", [LearnedPositionSpec((0,), (15,)), LearnedPositionSpec((0, 1, 2), (15, 4, 4))])
def test_a_learned_position_with_too_few_places_is_refused(position: LearnedPositionSpec) -> None:
    with pytest.raises(InputError) as caught:
        over(position, image=PATCHES, text=IDS)
    assert str(caught.value) == (
        "model.stacks.trunk.position has 15 places on axis 0, but the tokens of model.encoders.text stand at up to 16 "
        "(TextTokensSpec): raise LearnedPositionSpec.sizes to 16, or let the tokenizer make fewer."
    )
    over(position, image=PATCHES)


def test_a_mixer_for_shorter_rows_is_refused() -> None:
    """A text of 16 ids and two special tokens; how many tokens pictures make, their size says."""

    def model(length: int) -> ModelSpec:
        base = tiny_model()
        stack = StackSpec(16, 2, LayerSpec(LinformerSpec(heads=2, length=length, projected=4)))
        encoder = EncoderSpec(IDS, "trunk", class_token=True, registers=1)
        return ModelSpec({"trunk": stack, "image": base.stacks["image"]}, base.encoders | {"text": encoder})

    with pytest.raises(InputError) as caught:
        model(17)
    assert str(caught.value) == (
        "model.stacks.trunk has a LinformerSpec over rows of at most 17 tokens, but those of model.encoders.text have "
        "up to 18: raise its length to 18, or let the tokenizer make fewer."
    )
    made = model(18).build()
    made.initialise(0)
    assert made(tiny_batch(["a large red square on the left " * 9, ""])).tokens["text"].x.shape[1] == 18


class Packed(nn.Module):
    """A tokenizer that puts two documents into each row."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: Tensor | Text) -> Tokens:
        tokens: Tokens = self.inner(value)
        place = torch.arange(tokens.x.shape[1])
        return tokens._replace(segment=(place > 1).long().expand(tokens.x.shape[:2]))


@pytest.mark.parametrize("special", [{}, {"registers": 1}, {"class_token": True}], ids=str)
@pytest.mark.parametrize("pool", [MeanPoolSpec(), LastPoolSpec(), AttentionPoolSpec(AttentionSpec(2)), None], ids=str)
def test_segments_are_refused_rather_than_mixed(pool: PoolSpec | None, special: dict[str, Any]) -> None:
    if pool is None:
        pool, special = ClassTokenPoolSpec(), {**special, "class_token": True}
    base = tiny_model()
    encoder = dataclasses.replace(base.encoders["text"], pool=pool, **special)
    model = ModelSpec({"text": base.stacks["text"]}, {"text": encoder}).build()
    model.initialise(0)
    batch = tiny_batch(["a red square", "blue"])._replace(image=None)
    model(batch)
    model.encoders["text"].tokenizer = Packed(model.encoders["text"].tokenizer)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TextTokensSpec packs several segments into a row, but an encoder makes one"):
        model(batch)
