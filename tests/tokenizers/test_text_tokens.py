"""Text to tokens: cutting, padding and ends on the host, an embedding on the device; padding never changes anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_batch, tiny_model

from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.pool import (
    AttentionPoolSpec,
    ClassTokenPoolSpec,
    FirstPoolSpec,
    LastPoolSpec,
    MeanPoolSpec,
    PoolSpec,
)
from mmformer.nn.position import LearnedPositionSpec, PositionSpec, SinusoidalPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokens, TextTokensSpec
from mmformer.tokenizers.vocabulary import Vocabulary
from mmformer.types import Batch, Text, Tokens, is_special, stands_everywhere

SPEC = TextTokensSpec(VOCABULARY, context_length=20)
ENCODER = SPEC.encoder()
WORDS = Vocabulary.load(VOCABULARY)
LONG = "a very long text that goes on and on, past any context that there is, and has no end " * 3


def pieces(text: str) -> list[int]:
    """What the vocabulary makes of a text inside a sentence."""
    return WORDS.encode(" " + text) if text else []


def encode(*texts: str, **changes: Any) -> Text:
    return dataclasses.replace(SPEC, **changes).encoder().encode(texts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_rows_are_the_vocabularys_ids_an_end_and_padding(texts: list[str]) -> None:
    text = ENCODER.encode(texts)
    assert text.ids.dtype == text.lengths.dtype == torch.int64
    length = text.ids.shape[1]
    assert length == min(20, -(-int(text.lengths.max()) // 8) * 8)
    for given_text, ids, n in zip(texts, text.ids.tolist(), text.lengths.tolist(), strict=True):
        assert ids[:n] == [*pieces(given_text)[:19], WORDS.eos]
        assert ids[n:] == [WORDS.pad] * (length - n)


def test_a_text_that_is_cut_keeps_its_ends() -> None:
    whole = pieces(LONG)
    assert encode(LONG).ids[0].tolist() == [*whole[:19], WORDS.eos]
    assert encode(LONG, begin=True).ids[0].tolist() == [WORDS.bos, *whole[:18], WORDS.eos]
    assert encode(LONG, begin=True, end=False).ids[0].tolist() == [WORDS.bos, *whole[:19]]
    assert encode(LONG, end=False).ids[0].tolist() == whole[:20]


def test_lengths_are_multiples_of_8_up_to_the_context() -> None:
    for number in range(1, 40):
        text = ENCODER.encode(["a" + " a" * (number - 1)])
        assert int(text.lengths[0]) == min(number + 1, 20)
        assert text.ids.shape[1] in (8, 16, 20)
        assert text.ids.shape[1] - int(text.lengths[0]) < 8
    assert encode("a", "a b", LONG).ids.shape == (3, 20)


def test_the_first_word_is_as_elsewhere_unless_it_is_not_wanted() -> None:
    assert encode("red").ids[0, 0] == encode("a red").ids[0, 1]
    assert encode("red", prefix_space=False).ids[0].tolist()[:-7] == WORDS.encode("red")[:1]
    assert encode("red", prefix_space=False).ids[0, 0] != encode("red").ids[0, 0]


def test_padding_that_is_read_is_part_of_every_text() -> None:
    text, short = encode("red", LONG, padded=True), encode("red")
    number = int(short.lengths[0])
    assert text.ids.shape == (2, 20) and text.lengths.tolist() == [20, 20] and bool(text.real.all())
    assert torch.equal(text.ids[0, :number], short.ids[0, :number])
    assert set(text.ids[0, number:].tolist()) == {WORDS.ids.pad or 0}
    with pytest.raises(InputError, match=r"DecoderSpec.tokenizer must be one that is not padded"):
        DecoderSpec(TextTokensSpec("x", padded=True), "text")


def test_places_count_all_ids_or_the_real_ones_alone() -> None:
    text = Text(
        torch.zeros(2, 4, dtype=torch.int64), torch.tensor([4, 4]), torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]]) > 0
    )
    for counted, places in ((False, [[0, 1, 2, 3]] * 2), (True, [[0, 1, 1, 2], [0, 0, 0, 1]])):
        tokens = dataclasses.replace(SPEC, counted=counted).build(8)
        assert tokens(text).pos[..., 0].tolist() == places
        assert tokens(text, start=torch.tensor([5, 0])).pos[0, :, 0].tolist() == [5 + place for place in places[0]]


def test_ids_that_stand_everywhere_have_a_place_on_the_first_axis_alone() -> None:
    text = Text(
        torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]), everywhere=torch.tensor([[False, True, False]])
    )
    pos = SPEC.build(8)(text).pos
    assert pos.tolist() == [[[0, 0, 0], [1, -1, -1], [2, 0, 0]]]
    assert stands_everywhere(pos).tolist() == [[False, True, False]] and not bool(is_special(pos).any())


def test_an_empty_text_is_one_end() -> None:
    for changes in ({}, {"end": False}, {"begin": False, "end": False}):
        text = encode("", "some words", **changes)
        assert text.lengths[0] == 1
        assert text.ids[0, 0] == WORDS.eos
    both = encode("", begin=True)
    assert both.ids[0, :2].tolist() == [WORDS.bos, WORDS.eos]
    assert encode("", begin=True, end=False).ids[0, 0] == WORDS.bos


def test_no_texts_are_no_rows() -> None:
    text = ENCODER.encode([])
    assert text.ids.shape == (0, 8)
    assert text.lengths.shape == (0,)


def test_special_tokens_are_not_written_by_texts() -> None:
    ids = encode("<eos><pad><mask>").ids[0].tolist()
    assert ids.count(WORDS.eos) == 1
    assert WORDS.mask not in ids


def test_trim_cuts_to_the_longest_that_is_left() -> None:
    text = encode("a", "a a a a a a a a a a", LONG)
    assert text.ids.shape == (3, 20)
    short = text.rows(slice(0, 1))
    assert torch.equal(short.ids, encode("a").ids)
    middle = text.rows(torch.tensor([1, 0]))
    assert torch.equal(middle.ids, encode("a a a a a a a a a a", "a").ids)
    assert torch.equal(middle.lengths, text.lengths[[1, 0]])
    assert torch.equal(text.rows(slice(0, 3)).ids, text.ids)


def build(width: int = 6) -> TextTokens:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SPEC.build(width)


def test_tokens_are_rows_of_the_table() -> None:
    module = build()
    assert module.weight.shape == (-(-len(WORDS) // 64) * 64, 6)
    text = encode("one", "one two three four five six seven eight")
    tokens = module(text)
    assert tokens.x.shape == (*text.ids.shape, 6)
    assert torch.equal(tokens.x[1, 3], module.weight[text.ids[1, 3]])
    assert tokens.pos.tolist() == [[[time, 0, 0] for time in range(text.ids.shape[1])]] * 2
    assert tokens.valid is not None
    assert tokens.valid.sum(1).tolist() == text.lengths.tolist()
    assert tokens.valid[0].tolist() == sorted(tokens.valid[0].tolist(), reverse=True)


POOLS: list[PoolSpec] = [MeanPoolSpec(), LastPoolSpec(), AttentionPoolSpec(), ClassTokenPoolSpec(), FirstPoolSpec()]
POSITIONS = [PositionSpec(), LearnedPositionSpec(), SinusoidalPositionSpec(), RotaryPositionSpec()]


@pytest.mark.parametrize("pool", POOLS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("position", POSITIONS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_in_a_whole_model(pool: PoolSpec, position: PositionSpec, causal: bool) -> None:
    """Whatever stands beside a text in its batch, and whatever its padding holds."""
    if causal and pool.reads_first:
        pytest.skip("refused")
    spec = tiny_model()
    encoder = dataclasses.replace(
        spec.encoders["text"], pool=pool, causal=causal, class_token=pool.special > 0, registers=2
    )
    stacks = {**spec.stacks, "text": dataclasses.replace(spec.stacks["text"], position=position)}
    model = dataclasses.replace(spec, stacks=stacks, encoders={**spec.encoders, "text": encoder}).build().eval()
    model.initialise(0)
    texts = ["red", "a longer text of some more words than that", "", LONG]
    batch = tiny_batch(texts)._replace(image=None)
    assert batch.text is not None
    together = model(batch).embedding["text"]
    for index, text in enumerate(texts):
        alone = model(tiny_batch([text])._replace(image=None)).embedding["text"][0]
        assert torch.allclose(alone, together[index], atol=2e-6, rtol=0)
    place = torch.arange(batch.text.ids.shape[1])
    other = torch.where(place < batch.text.lengths[:, None], batch.text.ids, 77)
    dirty = model(batch._replace(text=Text(other, batch.text.lengths))).embedding["text"]
    assert torch.allclose(dirty, together, atol=1e-6, rtol=0)


def test_gradients_do_not_reach_the_row_of_padding() -> None:
    spec = tiny_model()
    model = spec.build()
    model.initialise(0)
    batch = tiny_batch(["red", LONG])._replace(image=None)
    model(batch).embedding["text"].sum().backward()
    gradient = model.encoders["text"].tokenizer.weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient[WORDS.pad].abs().sum() == 0
    assert gradient[WORDS.eos].abs().sum() > 0


def tokens(text: Text, **changes: Any) -> Tokens:
    """Of a module whose tables begin alike whatever the change."""
    module = dataclasses.replace(SPEC, **changes).build(6)
    with torch.no_grad():
        for table in module.parameters():
            table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(len(table))))
    made: Tokens = module(text)
    return made


def test_ids_may_be_real_anywhere_and_stand_where_they_stand() -> None:
    text = encode("one two three", "one")
    mask = torch.tensor([[False, True, True, False, True, True, False, False]] * 2)
    marked = tokens(text._replace(valid=mask))
    plain = tokens(text)
    assert marked.valid is mask
    assert torch.equal(marked.pos, plain.pos) and torch.equal(marked.x, plain.x)


@pytest.mark.parametrize("position", POSITIONS, ids=lambda spec: type(spec).__name__)
def test_what_is_not_valid_changes_nothing_in_a_whole_model(position: PositionSpec) -> None:
    spec = tiny_model()
    stacks = {**spec.stacks, "text": dataclasses.replace(spec.stacks["text"], position=position)}
    model = dataclasses.replace(spec, stacks=stacks).build().eval()
    model.initialise(0)
    batch = tiny_batch(["a longer text of some more words than that"] * 2)._replace(image=None)
    assert batch.text is not None
    valid = torch.rand(batch.text.ids.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    text = batch.text._replace(valid=valid)
    other = text._replace(ids=torch.where(valid, text.ids, 77))
    made, dirty, whole = (model(batch._replace(text=t)).embedding["text"] for t in (text, other, batch.text))
    assert torch.allclose(made, dirty, atol=1e-6, rtol=0)
    assert not torch.allclose(made, whole, atol=1e-3, rtol=0)


def test_types_add_rows_of_a_table_of_theirs() -> None:
    text = encode("one two three", "one")
    types = torch.arange(text.ids.numel()).view_as(text.ids) % 2
    module = dataclasses.replace(SPEC, types=2, scale=3.0).build(6)
    assert module.type_weight is not None and module.type_weight.shape == (2, 6)
    expected = 3 * module.weight[text.ids] + module.type_weight[types]
    assert torch.equal(module(text._replace(types=types)).x, expected)
    assert torch.equal(module(text).x, module(text._replace(types=torch.zeros_like(types))).x)
    with pytest.raises(InputError, match="The text has types, but the model has no table of them"):
        SPEC.build(6)(text._replace(types=types))


def test_both_tables_are_initialised() -> None:
    module = dataclasses.replace(SPEC, types=300).build(32)
    for table in module.parameters():
        torch.nn.init.constant_(table, 9.0)
    module.reset_parameters()
    assert [round(float(table.detach().std(correction=0)), 3) for table in module.parameters()] == [0.02, 0.02]


def test_a_table_may_have_more_rows_and_logits_go_over_all_that_are_asked_for() -> None:
    module = dataclasses.replace(SPEC, rows=len(WORDS) + 5).build(6)
    assert len(module.weight) == module.size == len(WORDS) + 5
    assert SPEC.build(6).size == len(WORDS)
    with pytest.raises(InputError, match=rf"rows is 300, but .* has {len(WORDS)} pieces: set rows to that or more"):
        dataclasses.replace(SPEC, rows=300).build(6)


def test_a_model_without_a_vocabulary_takes_ids() -> None:
    spec = TextTokensSpec(None, rows=50, ids=SpecialIds(bos=3, eos=(4,)))
    module = spec.build(6)
    assert module.weight.shape == (50, 6)
    assert (module.start, module.ends, module.unwritten) == (3, [4], [])
    assert module(Text(torch.tensor([[49]]), torch.tensor([1]))).x.shape == (1, 1, 6)
    with pytest.raises(InputError, match="The model takes ids only, not texts: it has no vocabulary"):
        spec.encoder().encode(["a text"])
    with pytest.raises(InputError, match="The model gives ids only, no texts: it has no vocabulary"):
        spec.encoder().vocabulary.decode([1])
    with pytest.raises(InputError, match="A decoder begins with bos, but its vocabulary has none"):
        _ = TextTokensSpec(None, rows=50).build(6).start
    with pytest.raises(InputError, match=r"rows must be the number of ids, for there is no vocabulary, but is None"):
        TextTokensSpec(None)
    with pytest.raises(InputError, match=r"TextTokensSpec.ids has 50, but the ids are 0 to 49"):
        TextTokensSpec(None, rows=50, ids=SpecialIds(mask=50)).build(6)


def test_special_ids_are_the_vocabularys_own() -> None:
    own = WORDS.ids
    assert (own.pad, own.bos, own.eos, own.mask, own.first) == (0, 2, (3,), 4, 2)
    assert own.unwritten == tuple(index for index in WORDS.specials.values() if index != WORDS.eos)
    assert torch.equal(encode("a", ids=own).ids, encode("a").ids)
    with pytest.raises(InputError, match=r"emoji-12.model says its own: SpecialIds\(pad=0, bos=2, .* to null"):
        encode("a", ids=SpecialIds(bos=9))


def test_a_decoder_begins_with_start_or_bos() -> None:
    assert SpecialIds(bos=2, start=7).first == 7
    assert SpecialIds(start=0, bos=2).first == 0
    assert SpecialIds().first is None
    for ids in ({"pad": -1}, {"bos": -1}, {"mask": -2}, {"start": -1}):
        with pytest.raises(InputError, match=rf"SpecialIds.{next(iter(ids))} must be None or an id"):
            SpecialIds(**ids)
    for several in ((1, 1), (-1,)):
        with pytest.raises(InputError, match=r"SpecialIds.eos must be ids, each once and at least 0"):
            SpecialIds(eos=several)
        with pytest.raises(InputError, match=r"SpecialIds.unwritten must be ids, each once and at least 0"):
            SpecialIds(unwritten=several)


def test_a_spec_of_all_fields_is_hashable_and_survives_yaml() -> None:
    ids = SpecialIds(pad=0, bos=2, eos=(3,), mask=4, unwritten=WORDS.ids.unwritten)
    spec = dataclasses.replace(SPEC, rows=9000, ids=ids, types=2, scale=2.5)
    model = tiny_model()
    encoder = dataclasses.replace(model.encoders["text"], tokenizer=spec)
    model = dataclasses.replace(model, encoders={**model.encoders, "text": encoder})
    assert len({spec, dataclasses.replace(spec, types=3), dataclasses.replace(spec, rows=9001)}) == 3
    assert parse(ModelSpec, to_data(model), "") == model


@pytest.mark.parametrize("change", [{"rows": 9000}, {"types": 2}, {"scale": 2.0}], ids=str)
def test_every_field_of_the_tables_changes_the_module(change: dict[str, Any]) -> None:
    text = encode("some words")
    one, other = SPEC.build(6), dataclasses.replace(SPEC, **change).build(6)
    shapes = [[table.shape for table in module.parameters()] for module in (one, other)]
    assert shapes[0] != shapes[1] or not torch.allclose(tokens(text).x, tokens(text, **change).x)


@pytest.mark.parametrize(
    "change", [{"context_length": 8}, {"begin": True}, {"end": False}, {"prefix_space": False}], ids=str
)
def test_every_field_changes_the_ids(change: dict[str, Any]) -> None:
    one, other = encode("some words", LONG), encode("some words", LONG, **change)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)


def test_what_cannot_be_is_refused(tmp_path: Any) -> None:
    for field, value in {"rows": 0, "types": -1, "scale": 0.0}.items():
        with pytest.raises(InputError, match=f"TextTokensSpec.{field} must be .*, but is {value}"):
            TextTokensSpec("x", **{field: value})  # type: ignore[arg-type]
    for begin, end, least in ((False, False, 1), (True, False, 2), (False, True, 2), (True, True, 3)):
        with pytest.raises(InputError, match=f"TextTokensSpec.context_length must be at least {least}, but is"):
            TextTokensSpec("x", least - 1, begin, end)
    with pytest.raises(InputError, match=r"nowhere.model cannot be read: No such file"):
        TextTokensSpec(str(tmp_path / "nowhere.model")).build(8)
    with pytest.raises(InputError, match=r"nowhere.model cannot be read: No such file"):
        TextTokensSpec(str(tmp_path / "nowhere.model")).encoder()


def test_ids_past_the_vocabulary_are_no_rows_of_another() -> None:
    batch = Batch(("a",), {}, text=Text(torch.tensor([[len(WORDS) + 100]]), torch.tensor([1])))
    model = tiny_model().build()
    with pytest.raises(IndexError):
        model(batch)


def test_what_stands_before_a_prompt() -> None:
    """A prompt that begins with a language says all that follows the start."""
    spoken = SpecialIds(start=7, prompt=(7, 20, 21), languages=(10, 11))
    assert spoken.before([]) == spoken.before([1, 10]) == (7, 20, 21)
    assert spoken.before([11, 22]) == (7,)
    assert SpecialIds(bos=7).before([1]) == (7,)
    assert SpecialIds(bos=7, prompt=()).before([1]) == ()
    assert SpecialIds(bos=7, prompt=()).before([]) == (7,), "something has to stand there"
    assert {7, 20, 21, 10, 11} <= set(spoken.all)
    with pytest.raises(InputError, match=r"SpecialIds.languages must be ids, each once and at least 0"):
        SpecialIds(languages=(3, 3))
