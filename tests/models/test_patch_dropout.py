"""Patch dropout: which tokens reach the stack in training, in what order, at which places; and none is lost outside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import VOCABULARY
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.encoder import Encoder, EncoderSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import SinusoidalPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Audio, Patches, Tokens, is_special

WIDTH = 16
STACK = StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(2)), SinusoidalPositionSpec((1, 2)))
SPEC = EncoderSpec(ImagePatchesSpec(patch=4), "s", class_token=True, registers=2, patch_dropout=0.75)


class Watched(Stack):
    """A stack that remembers what entered it."""

    def forward(self, tokens: Tokens, **more: Any) -> Any:
        self.entered = tokens
        return super().forward(tokens, **more)


def built(**changes: Any) -> tuple[Encoder, Watched]:
    torch.manual_seed(0)
    return dataclasses.replace(SPEC, **changes).build(WIDTH).train(), Watched(STACK).train()


def images(batch: int = 3, side: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, side, side), generator=draw, dtype=torch.uint8)


def natives() -> Patches:
    """Pictures of 24, 4 and 1 patches."""
    grid = torch.tensor([[4, 6], [2, 2], [1, 1]])
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randint(1, 256, (3, 24, 3, 4, 4), generator=draw, dtype=torch.uint8)
    real = torch.arange(24) < grid.prod(1)[:, None]
    return Patches(pixels * real[..., None, None, None], grid)


def test_the_stack_sees_so_many_patches_where_they_stand() -> None:
    encoder, stack = built()
    image = images()
    encoder(image, stack)
    whole = encoder.tokenizer(image)
    entered = stack.entered
    assert entered.x.shape == (3, 3 + 9, WIDTH)  # a quarter of 36, after the class token and the registers
    assert entered.valid is None
    assert is_special(entered.pos[:, :3]).all()
    for b in range(3):
        places = [tuple(place) for place in entered.pos[b, 3:].tolist()]
        assert places == sorted(set(places)), "different ones, in their order"
        for place, x in zip(places, entered.x[b, 3:], strict=True):
            torch.testing.assert_close(x, whole.x[b, 6 * place[1] + place[2]])
    assert len({str(entered.pos[b].tolist()) for b in range(3)}) == 3, "each picture loses others"


def test_every_patch_is_as_likely() -> None:
    encoder, stack = built(patch_dropout=0.5)
    image, seen, rounds = images(), torch.zeros(36), 100
    with torch.no_grad():
        for _ in range(rounds):
            encoder(image, stack)
            place = stack.entered.pos[:, 3:]
            seen += torch.bincount((6 * place[..., 1] + place[..., 2]).flatten(), minlength=36)
    share = seen / (3 * rounds)
    assert ((share - 0.5).abs() < 0.15).all()  # five standard deviations
    assert share.mean() == 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_of_sizes_of_their_own_lose_each_its_share(packed: bool) -> None:
    encoder, stack = built(packed=packed, registers=0, patch_dropout=0.5)
    encoded = encoder(natives(), stack)
    tokens = encoded.tokens
    assert tokens.valid is not None
    assert tokens.valid.tolist() == [[True] * (1 + number) + [False] * (12 - number) for number in (12, 2, 1)]
    for b, (rows, columns) in enumerate(natives().grid.tolist()):
        pos = tokens.pos[b, 1:][tokens.valid[b, 1:]]
        assert (pos[:, 0] == 0).all()
        assert (pos[:, 1] < rows).all()
        assert (pos[:, 2] < columns).all()
        assert len({tuple(place) for place in pos.tolist()}) == len(pos)
    assert encoded.embedding.isfinite().all()
    assert stack.entered.x.shape[:2] == ((2, 13) if packed else (3, 13))


def test_what_is_not_there_is_never_drawn() -> None:
    """The patches past a small picture's end hold zeros, and none of the patches that remain does."""
    encoder, stack = built(registers=0, class_token=False, patch_dropout=0.3)
    torch.nn.init.zeros_(encoder.tokenizer.projection.bias)
    for _ in range(20):
        encoder(natives(), stack)
        entered = stack.entered
        assert entered.valid is not None
        assert entered.valid.sum(1).tolist() == [17, 3, 1]
    whole = encoder.tokenizer(natives())
    for b in range(3):
        known = {tuple(p.tolist()): x for p, x, v in zip(whole.pos[b], whole.x[b], whole.valid[b], strict=True) if v}
        for place, x in zip(entered.pos[b][entered.valid[b]], entered.x[b][entered.valid[b]], strict=True):
            torch.testing.assert_close(x, known[tuple(place.tolist())])


def test_outside_training_nothing_is_dropped() -> None:
    encoder, stack = built()
    encoder.eval()
    plain = built(patch_dropout=0.0)[0]
    plain.load_state_dict(encoder.state_dict())
    for value in (images(), natives()):
        one, other = encoder(value, stack), plain(value, stack)
        assert torch.equal(one.embedding, other.embedding)
        assert one.tokens.x.shape == other.tokens.x.shape


def test_one_seed_drops_the_same() -> None:
    encoder, stack = built()
    seen = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        encoder(images(), stack)
        seen.append(stack.entered.pos)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_sounds_lose_patches_too() -> None:
    encoder, stack = built(tokenizer=SpectrogramPatchesSpec(), registers=0, patch_dropout=0.5)
    rate = encoder.spec.tokenizer.rate
    audio = Audio(
        torch.randn(2, rate, generator=torch.Generator().manual_seed(0)), torch.tensor([rate, rate // 4]), rate
    )
    whole = encoder.tokenizer(audio)
    encoder(audio, stack)
    expected = [1 + round(number / 2) for number in whole.valid.sum(1).tolist()]
    assert stack.entered.valid.sum(1).tolist() == expected


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"EncoderSpec.patch_dropout must be at least 0 and below 1"):
        dataclasses.replace(SPEC, patch_dropout=share)


def test_text_has_no_patches() -> None:
    words = TextTokensSpec(VOCABULARY, context_length=16)
    with pytest.raises(InputError, match="patch_dropout must be 0 with TextTokensSpec, which makes no patches, but is"):
        EncoderSpec(words, "s", patch_dropout=0.5)
    EncoderSpec(words, "s")
    EncoderSpec(SpectrogramPatchesSpec(), "s", patch_dropout=0.5)
