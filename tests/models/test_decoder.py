"""A decoder learns each id after those before it, from what it reads; refusals: test_decoder_refusals.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from decoders import BOS, EOS, READS, ROWS, WORDS, build, decoder, memory, of_row, padded, run, spec
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.models.decoder import DecoderSpec, concatenate
from mmformer.models.transform import TransformSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.tokenizers.vocabulary import VocabularySpec

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


def test_smoothing_is_of_training_alone() -> None:
    kind = next(iter(READS))
    model, read = build(spec(kind, smoothing=0.2)), memory()
    plain = build(spec(kind))
    measured, expected = (decoder(m).loss(padded(ROWS, 8), read, m.stack_of("writer")) for m in (model, plain))
    assert_close(measured[0].total, expected[0].total)
    decoder(model).train()
    trained, _ = decoder(model).loss(padded(ROWS, 8), read, model.stack_of("writer"))
    x = torch.cat([expected[1].x[index, : len(row)] for index, row in enumerate(ROWS)])
    ids = torch.tensor([wanted for row in ROWS for wanted in row])
    wanted = F.cross_entropy(decoder(plain).logits(x), ids, reduction="sum", label_smoothing=0.2)
    assert_close(trained.total, wanted)


def test_logits_may_be_made_of_what_a_transform_makes_of_tokens() -> None:
    norm = LayerNormSpec(eps=0.3)
    model, read = build(spec("cross", transform=TransformSpec("relu", norm), logit_scale=0.7)), memory()
    writer = decoder(model)
    x = run(model, [[BOS, 5, 6]], of_row(read, 0)).x
    inside = writer.transform
    assert inside is not None
    made = F.layer_norm(F.relu(inside.dense(x)), (16,), inside.norm.weight, inside.norm.bias, 0.3)  # type: ignore[arg-type]
    assert_close(writer.logits(x), F.linear(made * 0.7, writer.pieces))


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
