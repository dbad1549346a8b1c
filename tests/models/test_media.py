"""Rows of several pictures, and texts that see the last one before each token (``reads: media``)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from decoders import BOS, EOS, WORDS, build, decoder, spec
from tiny import SIDE, in_double, tiny_batch
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.models.decoder import DecoderSpec
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.perceiver import PerceiverResamplerSpec
from mmformer.types import Batch, Text, Tokens

HERE = WORDS.words().ids.mask
assert HERE is not None
QUERIES = 3
IDS = torch.tensor([[BOS, 9, HERE, 11, 12, HERE, 8, 7], [BOS, HERE, 10, 10, 10, 9, 9, 9]])


def described(**changes: Any) -> ModelSpec:
    plain = spec("cross")
    reads = LayerSpec(None, GELUFeedForwardSpec(2), AttentionSpec(2, bias=False), gated=True)
    alone = LayerSpec(AttentionSpec(2, bias=False), GELUFeedForwardSpec(2))
    writer = dataclasses.replace(plain.stacks["writer"], depth=4, layer=LayerSpec(), pattern=(reads, alone))
    resampler = PerceiverResamplerSpec(QUERIES, depth=2, attention=AttentionSpec(2, bias=False), content=True)
    image = dataclasses.replace(plain.encoders["image"], class_token=True, resampler=resampler)
    options = {"reads": {"image": "media"}, "placeholder": HERE, **changes}
    caption = dataclasses.replace(plain.decoders["caption"], **options)
    return ModelSpec({**plain.stacks, "writer": writer}, {"image": image}, {"caption": caption})


def model() -> Model:
    made = build(described())
    for name, value in made.named_parameters():
        if name.endswith(".gate"):
            torch.nn.init.constant_(value, 0.8)
    return made.float()


def pictures(number: int = 2, rows: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(rows, number, 3, SIDE, SIDE, generator=draw)


def memory(made: Model, image: Tensor) -> dict[str, Tokens]:
    return made(Batch((), {}, image), decode=False).tokens


def logits(made: Model, ids: Tensor, image: Tensor, valid: Tensor | None = None) -> Tensor:
    return text_logits(made, None, text_of(ids, valid), None, {"image": image}).detach()


def test_each_picture_of_a_row_is_encoded_as_if_it_were_alone() -> None:
    made, several = in_double(model()), pictures(3)
    outputs = made(Batch((), {}, several), decode=False, intermediates=["image/0"])
    tokens = outputs.tokens["image"]
    alone = [made(Batch((), {}, several[:, i]), decode=False, intermediates=["image/0"]) for i in range(3)]
    assert_close(tokens.x, torch.cat([each.tokens["image"].x for each in alone], dim=1))
    assert tokens.segment is not None and tokens.valid is None
    assert tokens.segment.tolist() == [[1] * QUERIES + [2] * QUERIES + [3] * QUERIES] * 2
    assert tokens.pos[..., 0].tolist() == [[*range(QUERIES)] * 3] * 2
    assert_close(outputs.embedding["image"], torch.stack([each.embedding["image"] for each in alone]).mean(0))
    between = torch.cat([each.intermediates["image/0"] for each in alone], dim=1)
    assert_close(outputs.intermediates["image/0"], between)
    whole = Batch(("a", "b"), {}, several)
    assert whole.rows(slice(1)).image.shape == (1, 3, 3, SIDE, SIDE)  # type: ignore[union-attr]
    assert torch.equal(whole.picture(1), several[1, 0])


def test_text_sees_the_last_picture_before_it_alone() -> None:
    """Of row 0 the first two ids see none, the next three the first picture; those after see both through the text."""
    made, image = model(), pictures()
    before = logits(made, IDS, image)

    def changed(place: int) -> list[list[bool]]:
        other = image.clone()
        other[:, place] = image[:, place].flip(-1)
        return ((logits(made, IDS, other) - before).abs().amax(-1) > 1e-5).tolist()

    assert changed(0) == [[False] * 2 + [True] * 6, [False] + [True] * 7]
    assert changed(1) == [[False] * 5 + [True] * 3, [False] * 8], "the second picture of row 1 stands nowhere"
    first = logits(made, IDS[:, :5], image[:, :1])
    assert_close(before[:, :5], first, msg="what comes later does not matter")


def test_what_a_token_reads_is_its_picture_and_no_other() -> None:
    """Layer by layer the readers' memory is one picture's, by hand."""
    made, image = model(), pictures()
    part, stack, read = decoder(made), made.stack_of("writer"), memory(made, image)
    tokens = part.tokenizer(text_of(IDS))
    media = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [0, *[1] * 7]])
    expected = stack(tokens, causal=True, memory=read["image"], media=media).tokens.x
    assert torch.equal(part(text_of(IDS), read, stack).x, expected)
    one = memory(made, image[:, 0])["image"]
    assert one.segment is None, "a picture a row has no number"
    rest = torch.where(IDS == HERE, 5, IDS)
    rest[:, 2] = HERE
    assert_close(part(text_of(rest), {"image": one}, stack).x, part(text_of(rest), read, stack).x)


def test_padding_changes_nothing() -> None:
    """On the left or on the right, and a placeholder that is not real is none."""
    made, image = model(), pictures()
    before = logits(made, IDS, image)
    fill = torch.full((2, 2), HERE)
    for ids, at in ((torch.cat((fill, IDS), 1), slice(2, None)), (torch.cat((IDS, fill), 1), slice(8))):
        valid = torch.zeros_like(ids, dtype=torch.bool)
        valid[:, at] = True
        assert_close(logits(made, ids, image, valid)[:, at], before)


@pytest.mark.parametrize("way", [GreedySpec(max_length=6), BeamSpec(beams=3, max_length=6)], ids=["greedy", "beams"])
def test_writing_with_a_cache_is_writing_without(way: GreedySpec | BeamSpec) -> None:
    """Prompts of different lengths and numbers of pictures; each text is the likeliest step by step, from the whole."""
    made, image = in_double(model()), pictures()
    prompt = Text(IDS, torch.tensor([7, 4]))
    written = way.write(Decoding(made, "caption", memory(made, image), 2), prompt)
    for row, text in enumerate(written):
        ids = [*IDS[row, : prompt.lengths[row]].tolist()]
        begun, score = len(ids), 0.0
        for index in [*text.ids, *([EOS] if len(text.ids) < 6 else [])]:
            following = logits(made, torch.tensor([ids]), image[row : row + 1])[0, -1]
            following[decoder(made).tokenizer.unwritten] = float("-inf")
            likely = following.log_softmax(-1)
            if isinstance(way, GreedySpec):
                assert index == likely.argmax()
            score += float(likely[index])
            ids.append(index)
        length = len(ids) - begun if isinstance(way, BeamSpec) else 1
        assert score / length == pytest.approx(text.score, abs=1e-5)


def test_placeholders_are_not_learned_and_stand_first_where_there_are_none() -> None:
    made, image = model(), pictures(1)
    read, stack = memory(made, image), made.stack_of("writer")
    rows = torch.tensor([[9, 10, EOS], [7, EOS, 0]])
    bare = Text(rows, torch.tensor([3, 2]))
    given = Text(torch.cat((torch.full((2, 1), HERE), rows), dim=1), bare.lengths + 1)
    first, second = (decoder(made).loss(text, read, stack)[0] for text in (bare, given))
    assert_close(first.total, second.total)
    assert first.items == second.items == 5
    single = made(tiny_batch(["a", "b"])._replace(text=None, target=bare), decode=True)
    assert single.losses["caption"].items == 5


def test_a_prompt_begins_with_its_picture() -> None:
    made = model()
    way, read = GreedySpec(max_length=4), memory(made, pictures(1))
    texts = write_texts(made, "caption", read, ["", ""], way)
    begun = Text(torch.tensor([[BOS, HERE]] * 2), torch.tensor([2, 2]))
    written = way.write(Decoding(made, "caption", read, 2), begun)
    decoded = [WORDS.words().decode([HERE, *each.ids]).removeprefix(" ") for each in written]
    assert texts == decoded


def test_gradients_reach_all_pictures_that_are_seen() -> None:
    made, image = model(), pictures(3).requires_grad_()
    text = Text(IDS[:, 1:], torch.tensor([7, 7]))
    outputs = made(Batch((), {}, image, target=text))
    outputs.losses["caption"].total.backward()
    assert image.grad is not None
    assert (image.grad.flatten(2).abs().amax(-1) > 0).tolist() == [[True, True, False], [True, False, False]]
    assert all(value.grad is not None and value.grad.any() for value in made.stacks["writer"].parameters())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"placeholder": None}, "placeholder must be an id where something is inserted, or read as media, but is None"),
        ({"reads": {"image": "media", "other": "cross"}}, "reads must be one encoder alone where it is read as media"),
        ({"packed": True}, "packed must be false where an encoder is read as a prefix or as media"),
    ],
)
def test_refusals(changes: dict[str, Any], told: str) -> None:
    old = described().decoders["caption"]
    with pytest.raises(InputError, match=f"DecoderSpec.{told}"):
        DecoderSpec(**{**{f.name: getattr(old, f.name) for f in dataclasses.fields(old)}, **changes})


def test_what_does_not_agree_is_refused() -> None:
    made = model()
    with pytest.raises(InputError, match=r"Row 0 has 2 placeholders, but 1 pictures: each stands for one of them"):
        logits(made, IDS, pictures(1))
    plain = described()
    bare = dataclasses.replace(plain, encoders={"image": dataclasses.replace(plain.encoders["image"], resampler=None)})
    with pytest.raises(InputError, match=r"A row has 2 pictures, which stand side by side as a resampler leaves them"):
        logits(build(bare), IDS, pictures())
    without = dataclasses.replace(
        plain.stacks["writer"], pattern=(), layer=LayerSpec(AttentionSpec(2)), memory_width=None
    )
    with pytest.raises(
        InputError, match=r"reads 'image' through cross mixers, but the layers of model\.stacks\.writer"
    ):
        dataclasses.replace(plain, stacks={**plain.stacks, "writer": without})
