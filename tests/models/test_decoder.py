"""A decoder learns each id after those before it, from what it reads; refusals: test_decoder_refusals.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIDE, VOCABULARY, tiny_batch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import Decoded, Decoder, DecoderSpec, concatenate
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import LearnedPositionSpec, RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import VocabularySpec
from mmformer.types import Batch, Text, Tokens

WORDS = TextTokensSpec(VOCABULARY, context_length=16)
BOS, EOS = 2, 3
READS: dict[str, dict[str, Any]] = {
    "alone": {},
    "cross": {"image": "cross"},
    "prefix": {"image": "prefix"},
    "two by cross": {"image": "cross", "whole": "cross"},
    "one by each": {"image": "cross", "whole": "prefix"},
}
ROWS = [[5, 6, 7, 8, 9, EOS], [10, EOS], [11, 12, 13, EOS]]
"""Three texts of different lengths."""


def spec(kind: str, **changes: Any) -> ModelSpec:
    """Over encoders of four patches and of one, wider than the decoder."""
    layer = LayerSpec(AttentionSpec(2, bias=False), GELUFeedForwardSpec(2))
    crossed = dataclasses.replace(layer, cross=AttentionSpec(2, bias=False))
    crosses = "cross" in READS[kind].values()
    writer = StackSpec(16, 2, crossed, RotaryPositionSpec(), memory_width=24)
    if not crosses:
        writer = dataclasses.replace(writer, layer=layer, memory_width=None)
    encoders = {
        "image": EncoderSpec(ImagePatchesSpec(patch=8), "eye"),
        "whole": EncoderSpec(ImagePatchesSpec(patch=SIDE), "eye"),
    }
    encoders = {name: encoder for name, encoder in encoders.items() if name in READS[kind]}
    stacks = {"writer": writer, **({"eye": StackSpec(24, 1, layer)} if encoders else {})}
    return ModelSpec(stacks, encoders, {"caption": DecoderSpec(WORDS, "writer", READS[kind], **changes)})


def build(made: ModelSpec, seed: int = 0) -> Model:
    """Weights so large that every token matters, in float64."""
    model = made.build().eval()
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.double()


def decoder(model: Model) -> Decoder:
    made = model.decoders["caption"]
    assert isinstance(made, Decoder)
    return made


def memory(rows: int = len(ROWS), seed: int = 1) -> dict[str, Tokens]:
    """What the two encoders might have made; of ``image``, rows have one to four tokens that are real."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(4)
    pos = torch.stack((torch.zeros_like(place), place // 2, place % 2), -1).expand(rows, -1, -1)
    x = torch.randn(rows, 5, 24, generator=generator, dtype=torch.float64)
    valid = place < (torch.arange(rows) % 4 + 1)[:, None]
    return {"image": Tokens(x[:, :4], pos, valid), "whole": Tokens(x[:, 4:], pos[:, :1])}


def of_row(read: dict[str, Tokens], row: int) -> dict[str, Tokens]:
    """One row's, without the tokens that are not real."""
    keep = {n: slice(None) if t.valid is None else t.valid[row] for n, t in read.items()}
    return {name: Tokens(t.x[row : row + 1, keep[name]], t.pos[row : row + 1, keep[name]]) for name, t in read.items()}


def padded(rows: Sequence[Sequence[int]], length: int | None = None, fill: int = 0) -> Text:
    lengths = [len(row) for row in rows]
    ids = torch.full((len(rows), length or max(lengths)), fill)
    for row, target in zip(rows, ids, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return Text(ids, torch.tensor(lengths))


def run(model: Model, rows: Sequence[Sequence[int]], read: dict[str, Tokens], **more: Any) -> Decoded:
    return decoder(model)(padded(rows), read, model.stack_of("writer"), **more)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------- what it learns


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", READS)
def test_the_loss_is_that_of_each_id_after_those_before_it(kind: str, tied: bool) -> None:
    """Against one pass for each id, over its own row alone: no padding, no mask, no later id."""
    model, read = build(spec(kind, tied=tied, chunk=4)), memory()
    loss, _ = decoder(model).loss(padded(ROWS, 8), read, model.stack_of("writer"))
    expected = torch.zeros((), dtype=torch.float64)
    for index, row in enumerate(ROWS):
        for place, wanted in enumerate(row):
            x = run(model, [[BOS, *row[:place]]], of_row(read, index)).x[:, -1]
            expected = expected + F.cross_entropy(decoder(model).logits(x), torch.tensor([wanted]))
    assert_close(loss.total, expected)
    assert loss.items == sum(map(len, ROWS))
    assert loss.total / loss.items > 3, "the test's weights are far from indifferent"


@pytest.mark.parametrize("kind", READS)
def test_later_ids_change_nothing_before_them(kind: str) -> None:
    model, read = build(spec(kind)), memory(1)
    before = run(model, [[BOS, 5, 6, 7, 8]], read).x
    for place in range(1, 5):
        ids = [BOS, 5, 6, 7, 8]
        ids[place] = 99
        after = run(model, [ids], read).x
        assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
        assert ((after - before)[0, place:].abs().amax(-1) > 1e-3).all(), "and all that is after"


@pytest.mark.parametrize("kind", READS)
def test_padding_changes_nothing(kind: str) -> None:
    model, read = build(spec(kind)), memory()
    for text in (padded(ROWS, 8), padded(ROWS, 13), padded(ROWS, 13, fill=77)):
        loss, decoded = decoder(model).loss(text, read, model.stack_of("writer"))
        for index, row in enumerate(ROWS):
            alone = run(model, [[BOS, *row[:-1]]], of_row(read, index))
            assert_close(decoded.x[index, : len(row)], alone.x[0], rtol=0, atol=1e-12)
        assert loss.items == sum(map(len, ROWS))


@pytest.mark.parametrize("kind", [kind for kind in READS if kind != "alone"])
def test_what_it_reads_changes_what_it_writes_but_for_tokens_that_are_not_real(kind: str) -> None:
    model, read = build(spec(kind)), memory()
    before = run(model, ROWS, read).x
    for name in READS[kind]:
        tokens = read[name]
        valid = torch.ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
        real = run(model, ROWS, read | {name: tokens._replace(x=tokens.x + valid[..., None])}).x
        assert ((real - before).abs().amax((1, 2)) > 1e-2).all(), "of every row"
        unreal = run(model, ROWS, read | {name: tokens._replace(x=tokens.x + 50 * ~valid[..., None])}).x
        lengths = torch.tensor([len(row) for row in ROWS])
        written = torch.arange(before.shape[1]) < lengths[:, None]
        assert_close(unreal[written], before[written], rtol=0, atol=1e-12)


def test_a_row_reads_its_own_memory_alone() -> None:
    for kind in ("cross", "prefix", "one by each"):
        model, read = build(spec(kind)), memory()
        before = run(model, ROWS, read).x
        other = read["image"].x.clone()
        other[1] += 1
        after = run(model, ROWS, read | {"image": read["image"]._replace(x=other)}).x
        assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-12)
        assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_all_of_a_prefix_sees_all_of_it_and_none_of_the_text() -> None:
    model, read = build(spec("prefix")), memory(1)
    read = {"image": read["image"]._replace(valid=None)}
    before = run(model, [[BOS, 5, 6]], read).tokens.x
    assert before.shape == (1, 4 + 3, 16)
    texts_changed = run(model, [[BOS, 98, 99]], read).tokens.x
    assert_close(texts_changed[:, :4], before[:, :4], rtol=0, atol=1e-12)
    last = read["image"].x.clone()
    last[:, 3] += 1
    last_changed = run(model, [[BOS, 5, 6]], {"image": read["image"]._replace(x=last)}).tokens.x
    assert ((last_changed - before)[0].abs().amax(-1) > 1e-3).all(), "the first of the prefix too"


def test_what_is_read_in_two_parts_is_read_as_one_is() -> None:
    """Two encoders by cross are one memory, one after the other; their order says nothing, their places do."""
    model, read = build(spec("two by cross")), memory()
    one = concatenate([read["image"], read["whole"]])
    assert one.valid is not None
    assert one.valid[:, 4].all()
    assert torch.equal(one.x[:, :4], read["image"].x)
    tokens = decoder(model).tokenizer(padded(ROWS))
    expected = model.stack_of("writer")(tokens, causal=True, memory=one).tokens.x
    assert_close(run(model, ROWS, read).x, expected, rtol=0, atol=1e-12)
    alone = concatenate([read["whole"], read["whole"]])
    assert alone.valid is None, "nothing to mask is said as None"
    assert concatenate([one]) is one


# ------------------------------------------------------------------------------------------------- with a cache


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize(
    "calls",
    [
        [[1, 1, 1], *[[1, 1, 1]] * 4],  # all step by step
        [[3, 1, 4], *[[1, 1, 1]] * 3],  # prompts of different lengths first
        [[2, 5, 1], [3, 1, 4], [1, 1, 2]],  # and later calls of different lengths
    ],
    ids=["steps", "ragged prompts", "ragged calls"],
)
def test_with_a_cache_it_is_as_without(kind: str, calls: list[list[int]]) -> None:
    model, read = build(spec(kind)), memory()
    texts = [[BOS, *range(20 * row + 5, 20 * row + 14)] for row in range(3)]
    whole = [run(model, [text], of_row(read, row)).x[0] for row, text in enumerate(texts)]
    state, done = model.stack_of("writer").empty_state(), [0, 0, 0]
    for lengths in calls:
        part = [text[a : a + n] for text, a, n in zip(texts, done, lengths, strict=True)]
        decoded = run(model, part, read, start=torch.tensor(done), state=state)
        for row, number in enumerate(lengths):
            expected = whole[row][done[row] : done[row] + number]
            assert_close(decoded.x[row, :number], expected, rtol=0, atol=1e-10)
        assert decoded.state is not None
        state, done = decoded.state, [a + n for a, n in zip(done, lengths, strict=True)]


def test_without_a_state_none_is_kept_and_the_start_moves_the_text() -> None:
    model = build(spec("alone"))
    assert run(model, ROWS, {}).state is None
    tokens = run(model, [[5, 6], [5, 6]], {}, start=torch.tensor([0, 3])).tokens
    assert tokens.pos[:, :, 0].tolist() == [[0, 1], [3, 4]]


# ------------------------------------------------------------------------------------------------- its words


def test_tied_logits_are_products_with_the_embeddings() -> None:
    tied, untied = build(spec("alone")), build(spec("alone", tied=False))
    x = torch.randn(2, 16, dtype=torch.float64)
    assert_close(decoder(tied).logits(x), x @ decoder(tied).tokenizer.weight.T)  # type: ignore[operator]
    output = decoder(untied).output
    assert output is not None
    assert_close(decoder(untied).logits(x), x @ output.weight.T)
    assert decoder(tied).output is None
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 8192 * 16
    for model, rows in ((tied, 8192), (untied, 4)):
        decoder(model).loss(padded([[5, 6, 7, EOS]]), {}, model.stack_of("writer"))[0].total.backward()
        gradient = decoder(model).tokenizer.weight.grad
        assert isinstance(gradient, Tensor)
        assert gradient.abs().amax(1).count_nonzero() == rows, "untied, the rows that were read: bos and three words"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_that_pad_the_table_are_no_words(tied: bool, tmp_path: Path) -> None:
    """290 pieces in a table of 320 rows: loss, gradient and logits know 290."""
    VocabularySpec(size=290).train(["a red square and a blue circle"] * 9).save(tmp_path / "small.model")
    words = dataclasses.replace(WORDS, vocabulary=str(tmp_path / "small.model"))
    made = spec("alone")
    model = build(dataclasses.replace(made, decoders={"caption": DecoderSpec(words, "writer", tied=tied)}))
    part = decoder(model)
    table = part.tokenizer.weight if part.output is None else part.output.weight
    assert isinstance(table, torch.nn.Parameter)
    assert len(table) == 320
    loss, decoded = part.loss(padded(ROWS), {}, model.stack_of("writer"))
    logits = part.logits(decoded.x)
    assert logits.shape == (3, 6, 290)
    pairs = [(logits[row, place], wanted) for row, ids in enumerate(ROWS) for place, wanted in enumerate(ids)]
    assert_close(loss.total, torch.stack([F.cross_entropy(x, torch.tensor(wanted)) for x, wanted in pairs]).sum())
    loss.total.backward()
    assert table.grad is not None
    assert table.grad[:290].abs().amax(1).all()
    assert not table.grad[290:].any()


# ------------------------------------------------------------------------------------------------- in a model


def built(made: ModelSpec) -> Model:
    """In float32, as pictures enter it."""
    return build(made).float()


def batch() -> Batch:
    return tiny_batch(["red", "a small blue square", ""])


@pytest.mark.parametrize("kind", READS)
def test_a_model_hands_it_what_its_encoders_made(kind: str) -> None:
    model, given = built(spec(kind)), batch()
    outputs = model(given)
    assert given.text is not None
    loss, decoded = decoder(model).loss(given.text, outputs.tokens, model.stack_of("writer"))
    assert set(outputs.losses) == {"caption"}
    assert_close(outputs.losses["caption"].total, loss.total)
    assert outputs.losses["caption"].items == given.text.lengths.sum()
    assert_close(outputs.tokens["caption"].x, decoded.tokens.x)
    assert set(outputs.embedding) == set(READS[kind]), "a decoder has none"
    if READS[kind]:
        assert given.image is not None
        other = model(given._replace(image=255 - given.image)).losses["caption"].total
        assert not torch.allclose(other, loss.total, rtol=1e-3)


def test_what_is_absent_leaves_it_out() -> None:
    model, given = built(spec("cross")), batch()
    assert model(given, decode=False).losses == {}
    assert list(model(given, decode=False).tokens) == ["image"]
    assert model(given._replace(text=None)).losses == {}
    alone = built(spec("alone"))
    assert set(alone(given._replace(image=None)).losses) == {"caption"}, "it reads nothing"
    with pytest.raises(InputError, match="This model reads image, but the batch has none of it"):
        model(given._replace(image=None))
    with pytest.raises(InputError, match="This model reads text, but the batch has none of it"):
        alone(given._replace(text=None))
    with pytest.raises(InputError, match="A decoder reads 'image', but there is nothing of it to read"):
        run(model, ROWS, {})


def test_it_writes_the_target_where_there_is_one() -> None:
    model, given = built(spec("cross")), batch()
    other = tiny_batch(["green", "far away", "pink and large"]).text
    both = model(given._replace(target=other)).losses["caption"]
    alone = model(given._replace(text=other)).losses["caption"]
    assert torch.equal(both.total, alone.total)
    assert other is not None
    assert both.items == other.lengths.sum()
    assert not torch.allclose(both.total, model(given).losses["caption"].total)


def test_the_host_has_an_encoder_for_each_field_that_is_read() -> None:
    reader = EncoderSpec(dataclasses.replace(WORDS, context_length=8), "writer")
    alone, read = spec("alone"), spec("prefix")
    both = dataclasses.replace(read, encoders={**read.encoders, "text": reader})
    found = {name: encoder.spec for name, encoder in alone.text_encoders().items()}
    assert found == {"text": WORDS, "target": WORDS}
    found = {name: encoder.spec for name, encoder in both.text_encoders().items()}
    assert found == {"text": reader.tokenizer, "target": WORDS}
    assert list(ModelSpec({"writer": alone.stacks["writer"]}, {"text": reader}).text_encoders()) == ["text"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", READS)
def test_every_parameter_learns(kind: str, tied: bool) -> None:
    model = built(spec(kind, tied=tied)).train()
    model(batch()).losses["caption"].total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("kind", READS)
def test_bfloat16_autocast_is_near(kind: str) -> None:
    model, given = built(spec(kind)), batch()
    expected = model(given).losses["caption"].total
    with torch.autocast("cpu", torch.bfloat16):
        found = model(given).losses["caption"].total
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=0.02, atol=0)


def test_an_encoder_and_a_decoder_may_share_a_stack() -> None:
    """One trunk reads the picture, both ways, and then writes of it, causally, as a prefix language model does."""
    trunk = StackSpec(16, 2, LayerSpec(AttentionSpec(2), GELUFeedForwardSpec(2)), RotaryPositionSpec())
    encoders = {"image": EncoderSpec(ImagePatchesSpec(patch=8), "trunk")}
    shared = ModelSpec({"trunk": trunk}, encoders, {"caption": DecoderSpec(WORDS, "trunk", {"image": "prefix"})})
    model = built(shared)
    twice = built(
        dataclasses.replace(
            shared,
            stacks={"trunk": trunk, "writer": trunk},
            decoders={"caption": DecoderSpec(WORDS, "writer", {"image": "prefix"})},
        )
    )
    state = model.state_dict()
    state |= {name.replace("trunk", "writer"): value for name, value in state.items() if "trunk" in name}
    twice.load_state_dict(state)
    losses = [made(batch()).losses["caption"].total for made in (model, twice)]
    assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    apart = {name: p.grad for name, p in twice.named_parameters()}
    for name, parameter in model.named_parameters():
        both = [apart[name], apart[name.replace("trunk", "writer")]] if "trunk" in name else [apart[name]]
        assert_close(parameter.grad, torch.stack([grad for grad in both if grad is not None]).sum(0))


def test_decoders_that_name_one_stack_share_its_weights_and_nothing_else() -> None:
    made = spec("cross")
    one = made.decoders["caption"]
    model = built(dataclasses.replace(made, decoders={"caption": one, "other": one}))
    losses = model(batch()).losses
    assert set(losses) == {"caption", "other"}
    assert not torch.allclose(losses["caption"].total, losses["other"].total), "each has a table of its own"
    assert len(model.stacks) == 2


@pytest.mark.parametrize("kind", ["cross", "prefix"])
def test_a_model_built_on_meta_is_the_same(kind: str) -> None:
    made = spec(kind, tied=False)
    with torch.device("meta"):
        model = made.build()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan"))
    other = made.build()
    for each in (model, other):
        each.initialise(7)
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(model.eval()(batch()).losses["caption"].total, other.eval()(batch()).losses["caption"].total)


def test_learned_positions_have_room_for_all_that_stands_in_a_decoder() -> None:
    """bos takes the place that the last id leaves: a text of the context length fits."""
    made = spec("alone")
    stack = dataclasses.replace(made.stacks["writer"], position=LearnedPositionSpec((0,), (16,)))
    model = built(dataclasses.replace(made, stacks={"writer": stack}))
    full = Text(torch.full((1, 16), 7), torch.tensor([16]))
    assert decoder(model).loss(full, {}, model.stack_of("writer"))[0].total.isfinite()
