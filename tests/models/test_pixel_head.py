"""A head over pixels: what goes back to which place, what it is to tell, and over which patches its loss is a mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import VOCABULARY
from torch import Tensor

from mmformer.bundle import Transforms
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.models.pixel_head import PixelHead, PixelHeadSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.masked_pixels import MaskedPixelsSpec
from mmformer.surgery.edit import EditSpec, edit
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.accumulate import accumulate
from mmformer.types import Batch, Tokens

POSITION = LearnedPositionSpec((1, 2), (2, 3))
STACK = StackSpec(16, 1, LayerSpec(AttentionSpec(2)), POSITION)
NARROW = StackSpec(8, 1, LayerSpec(AttentionSpec(2)), POSITION)
PATCHES = ImagePatchesSpec((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 4)
HEAD = PixelHeadSpec("image", "deep")
ENCODER = EncoderSpec(PATCHES, "vision", class_token=True, registers=1)
SPEC = ModelSpec({"vision": STACK, "deep": NARROW}, {"image": ENCODER}, heads={"pixels": HEAD})
SEEN = torch.tensor([[4, 1], [0, 5], [2, 3]])


def images() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 8, 12), generator=draw, dtype=torch.uint8)


def built(head: PixelHeadSpec = HEAD, **changes: Any) -> Model:
    model = dataclasses.replace(SPEC, heads={"pixels": head}, **changes).build().eval()
    model.initialise(0)
    return model


def batch(image: Tensor | None = None, seen: Tensor | None = SEEN) -> Batch:
    return Batch((), {}, images() if image is None else image, seen=seen)


def by_hand(image: Tensor, normalised: bool) -> Tensor:
    """What is to be told, pixel by pixel: B L (P P 3)."""
    made = torch.zeros(3, 6, 48, dtype=torch.float64)
    for b in range(3):
        for place in range(6):
            row, column = 4 * (place // 3), 4 * (place % 3)
            values = [
                (float(image[b, c, row + i, column + j]) / 255 - PATCHES.mean[c]) / PATCHES.std[c]
                for i in range(4)
                for j in range(4)
                for c in range(3)
            ]
            patch = torch.tensor(values, dtype=torch.float64)
            if normalised:
                mean = patch.sum() / 48
                patch = (patch - mean) / ((patch - mean).square().sum() / 47 + 1e-6).sqrt()
            made[b, place] = patch
    return made


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_over_the_patches_that_were_not_seen(normalised: bool) -> None:
    model = built(dataclasses.replace(HEAD, normalised=normalised))
    with torch.no_grad():
        outputs = model(batch())
    pixels, loss = outputs.logits["pixels"], outputs.losses["pixels"]
    assert pixels.shape == (3, 6, 48)
    error = (pixels.double() - by_hand(images(), normalised)).square().mean(-1)
    total = sum(float(error[b, place]) for b in range(3) for place in range(6) if place not in SEEN[b])
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert int(loss.items) == 3 * 4


def test_the_encoder_sees_those_patches_where_they_stand() -> None:
    model = built()
    with torch.no_grad():
        made, whole = model(batch()).tokens["image"], model(batch(seen=None)).tokens["image"]
    assert made.pos[:, 2:].tolist() == [[[0, place // 3, place % 3] for place in row] for row in SEEN.tolist()]
    assert whole.x.shape[1] == 2 + 6
    changed = images()
    changed[:, :, :4, :4] = 0  # patch 0, which the second picture shows alone
    with torch.no_grad():
        other = model(batch(changed)).tokens["image"].x
    assert [torch.equal(one, two) for one, two in zip(made.x, other, strict=True)] == [True, False, True]


def test_what_was_seen_goes_back_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built()
    head = model.heads["pixels"]
    assert isinstance(head, PixelHead)
    entered: list[Tokens] = []
    stack = model.stack_of("deep")
    forward = stack.forward
    monkeypatch.setattr(stack, "forward", lambda tokens: (entered.append(tokens), forward(tokens))[1])
    with torch.no_grad():
        outputs = model(batch())
        shown = head.enter(outputs.tokens["image"].x)
    (tokens,) = entered
    assert tokens.pos[:, :2].tolist() == [[[-1] * 3, [-2] * 3]] * 3
    assert tokens.pos[:, 2:].tolist() == [[[0, place // 3, place % 3] for place in range(6)]] * 3
    torch.testing.assert_close(tokens.x[:, :2], shown[:, :2])
    for b in range(3):
        for place in range(6):
            number = SEEN[b].tolist().index(place) if place in SEEN[b] else None
            wanted = head.unseen if number is None else shown[b, 2 + number]
            torch.testing.assert_close(tokens.x[b, 2 + place], wanted)


def test_where_no_batch_says_what_is_seen_it_says_nothing() -> None:
    outputs = built()(batch(seen=None))
    assert not outputs.logits and not outputs.losses
    text = TextTokensSpec(VOCABULARY, context_length=8)
    words = StackSpec(16, 1, LayerSpec(AttentionSpec(2)))
    encoders = {"image": ENCODER, "text": EncoderSpec(text, "words")}
    model = built(stacks={"vision": STACK, "deep": NARROW, "words": words}, encoders=encoders)
    read = text.encoder().encode(["red", "blue", "two"])
    assert not model(Batch((), {}, text=read, seen=SEEN)).losses


def test_a_batch_that_says_what_is_seen_drops_nothing_besides() -> None:
    model = built(encoders={"image": dataclasses.replace(ENCODER, patch_dropout=0.5)}).train()
    assert model(batch()).tokens["image"].x.shape[1] == 2 + 2


def test_what_its_layers_ask_for_is_told() -> None:
    layer = LayerSpec(AttentionSpec(2), MixtureOfExpertsSpec(2, GELUFeedForwardSpec(ratio=1.0)))
    stacks = {"vision": STACK, "deep": dataclasses.replace(NARROW, layer=layer)}
    outputs = built(stacks=stacks).train()(batch())
    assert set(outputs.aux) == {"pixels/router_z", "pixels/balance"}


@pytest.mark.parametrize("change", ["stem", "resampled", "text", "cross", "blind"])
def test_what_does_not_fit_is_told(change: str) -> None:
    encoders, deep, told = {"image": ENCODER}, NARROW, "whose tokens are not patches of a picture"
    match change:
        case "stem":
            encoders["image"] = EncoderSpec(ConvolutionalStemSpec(), "vision")
        case "resampled":
            encoders["image"] = EncoderSpec(PATCHES, "vision", resampler=AttentionResamplerSpec(4))
        case "text":
            encoders["image"] = EncoderSpec(TextTokensSpec(VOCABULARY, context_length=8), "vision")
        case "cross":
            layer = LayerSpec(AttentionSpec(2), cross=AttentionSpec(2))
            deep, told = dataclasses.replace(NARROW, layer=layer), "model.heads.pixels has no memory to read"
        case "blind":
            position = dataclasses.replace(POSITION, fixed=True)
            deep = StackSpec(10, 1, LayerSpec(AttentionSpec(2)), position)
            told = "needs a width that is a multiple of 4, but the stack's width is 10"
    with pytest.raises(InputError, match=told):
        ModelSpec({"vision": STACK, "deep": deep}, encoders, heads={"pixels": HEAD}).build()


def test_parts_of_a_batch_add_up() -> None:
    objective, found = MaskedPixelsSpec(patch=4, share=0.5).build(), []
    many = images().repeat(2, 1, 1, 1)
    prepared = objective.prepare(Batch(tuple("abcdef"), {}, many, positions=torch.arange(6)), 3)
    for parts in (1, 3):
        model = built().train()
        losses = accumulate(
            model, {"pixels": objective}, {"pixels": 1.0}, prepared, parts, lambda loss: loss.backward()
        )
        found.append((losses["pixels/squared_error"], [p.grad for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_edited_for_larger_pictures_both_stacks_have_more_places() -> None:
    edited = edit(built(), Transforms(ImageTransformSpec((8, 12))), EditSpec(image_size=(16, 12)))
    assert set(edited.report.remade) == {"stacks.vision.position.weight", "stacks.deep.position.weight"}
    with torch.no_grad():
        made = edited.model(batch(torch.cat((images(), images()), dim=2)))
    assert made.logits["pixels"].shape == (3, 12, 48)


def test_dropped_it_leaves_its_stack_behind() -> None:
    edited = edit(built(), Transforms(ImageTransformSpec((8, 12))), EditSpec(drop=("heads.pixels",)))
    assert edited.model.spec == ModelSpec({"vision": STACK}, {"image": ENCODER})


def test_a_stack_that_there_is_not() -> None:
    with pytest.raises(InputError, match=r"model.heads.pixels.stack is 'depe', but the stacks are vision, deep\. Did"):
        dataclasses.replace(SPEC, heads={"pixels": PixelHeadSpec("image", "depe")})
