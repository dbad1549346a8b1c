"""Writing: cached and uncached agree, alone and in a batch agree, and every option does what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from writers import EOS, KINDS, decoding, model, prompts

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding, take
from mmformer.generation.generation import GenerationSpec, begin_history, log_probabilities
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.types import Text

SPECS: dict[str, GenerationSpec] = {
    "greedy": GreedySpec(max_length=8),
    "constrained": GreedySpec(3, 8, repetition_penalty=1.5, no_repeat_ngram=2),
    "sampled": SamplingSpec(max_length=8, temperature=1.3, top_k=50, top_p=0.95, seed=7),
    "beams": BeamSpec(max_length=8, beams=3),
    "long beams": BeamSpec(2, 8, beams=4, length_penalty=2.0, no_repeat_ngram=1),
}


FREE = torch.zeros(1, dtype=torch.bool)
"""Of a text that may end."""


class Held(NamedTuple):
    """The texts so far, and their lengths."""

    ids: torch.Tensor
    lengths: torch.Tensor

    def take(self, rows: torch.Tensor, inputs: torch.Tensor | None = None) -> Held:
        return Held(self.ids[rows], self.lengths[rows])


class Uncached(Decoding):
    """Computes everything anew for each id, from the whole text so far, and each text reads an input of its own."""

    def begin(self, prompt: Text) -> Any:
        logits, _ = super().begin(prompt)
        return logits, Held(prompt.ids, prompt.lengths)

    def step(self, ids: torch.Tensor, progress: Any) -> Any:
        (padded, lengths) = progress
        each = torch.arange(self.rows).repeat_interleave(len(padded) // self.rows)
        padded = torch.cat((padded, torch.zeros_like(padded[:, :1])), 1)
        padded = padded.scatter(1, lengths[:, None], ids[:, None])
        text = Text(padded, lengths + 1)
        decoded = self.decoder(text, take(self.memory, each), self.stack)
        last = lengths[:, None, None].expand(-1, 1, decoded.x.shape[2])
        return self._logits(decoded.x.gather(1, last)), Held(padded, lengths + 1)

    def select(self, rows: torch.Tensor) -> Any:
        other = super().select(rows)
        other.__class__ = Uncached
        return other


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_and_uncached_write_the_same(kind: str, name: str, ragged: bool) -> None:
    cached, prompt = decoding(kind), prompts(6, ragged)
    uncached = decoding(kind)
    uncached.__class__ = Uncached
    one, other = SPECS[name].write(cached, prompt), SPECS[name].write(uncached, prompt)
    assert [text.ids for text in one] == [text.ids for text in other]
    assert all(math.isclose(a.score, b.score, abs_tol=1e-4) for a, b in zip(one, other, strict=True))
    alike = kind == "alone" and not ragged and name != "sampled"
    assert (len({tuple(text.ids) for text in one}) == 1) == alike, "inputs differ, and so do their texts"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_does_not_depend_on_its_batch(kind: str, name: str) -> None:
    together, prompt = decoding(kind), prompts(6, ragged=True)
    whole = SPECS[name].write(together, prompt)
    for row in range(6):
        rows = torch.tensor([row])
        alone = SPECS[name].write(
            together.select(rows), prompt.rows(rows)._replace(ids=prompt.ids[rows]), numbers=[row]
        )
        assert alone[0].ids == whole[row].ids


def test_a_greedy_text_is_the_likeliest_id_each_time() -> None:
    made, prompt = decoding("cross", 2), prompts(2, ragged=False)
    (first, _) = GreedySpec(max_length=5).write(made, prompt)
    ids, total = prompt.ids[:1], 0.0
    for expected in first.ids:
        decoded = made.decoder(
            Text(ids, torch.tensor([ids.shape[1]])), made.select(torch.tensor([0])).memory, made.stack
        )
        logits = made._logits(decoded.x[:, -1:])[0]
        assert int(logits.argmax()) == expected
        total += float(logits.log_softmax(-1)[expected].detach())
        ids = torch.cat((ids, torch.tensor([[expected]])), 1)
    assert len(first.ids) == 5
    assert math.isclose(first.score, total, abs_tol=1e-4)


@pytest.mark.parametrize(
    "bound", [{}, {"min_length": 2}, {"no_repeat_ngram": 1}, {"min_length": 3, "no_repeat_ngram": 1}]
)
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_enough_beams_find_the_best_of_all_texts(seed: int, penalty: float, bound: dict[str, int]) -> None:
    """Four ids and eos, three places: every text is tried one by one. What is forbidden costs the others nothing."""
    longest, made = 3, decoding("cross", 2, seed, small=4)
    spec = BeamSpec(**bound, max_length=longest, beams=5**longest, length_penalty=penalty)  # type: ignore[arg-type]
    found = spec.write(made, prompts(2, ragged=False))
    open_ids = [4, 5, 6, 7]
    for row in range(2):
        single = made.select(torch.tensor([row]))
        best = (-math.inf, [0])
        for length in range(spec.min_length, longest + 1):
            texts = itertools.product(open_ids, repeat=length)
            for ids in (ids for ids in texts if not spec.no_repeat_ngram or len(set(ids)) == length):
                score = log_probability(single, list(ids), ends=length < longest)
                written = length + (length < longest)
                best = max(best, (score / written**penalty, list(ids)))
        assert math.isclose(found[row].score, best[0], rel_tol=1e-4)
        assert found[row].ids == best[1]


def log_probability(made: Decoding, ids: list[int], ends: bool) -> float:
    whole = torch.tensor([[2, *ids]])
    decoded = made.decoder(Text(whole, torch.tensor([whole.shape[1]])), made.memory, made.stack)
    total = 0.0
    for place, index in enumerate([*ids, EOS] if ends else ids):
        logits = made._logits(decoded.x[:, place : place + 1])[0]
        total += float(logits.log_softmax(-1)[index].detach())
    return total


def test_more_beams_are_no_worse() -> None:
    made, prompt = decoding("cross", 6, small=12), prompts(6, ragged=False)
    scores = [[text.score for text in BeamSpec(6, 6, beams=k, length_penalty=0.0).write(made, prompt)] for k in (1, 16)]
    assert sum(b > a + 1e-4 for a, b in zip(*scores, strict=True)) >= 1
    assert sum(scores[1]) >= sum(scores[0])


def test_the_length_penalty_makes_texts_longer() -> None:
    made, prompt = decoding("cross", 6, small=3), prompts(6, ragged=False)
    lengths = [
        sum(len(text.ids) for text in BeamSpec(max_length=10, beams=8, length_penalty=p).write(made, prompt))
        for p in (0.0, 3.0)
    ]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    "spec", [GreedySpec(), SamplingSpec(seed=3), BeamSpec(beams=3)], ids=lambda s: type(s).__name__
)
def test_the_least_and_the_greatest_length_hold(spec: GenerationSpec) -> None:
    made, prompt = decoding("cross", small=1), prompts(6, ragged=False)
    short = dataclasses.replace(spec, max_length=2).write(made, prompt)
    assert all(len(text.ids) <= 2 for text in short)
    long = dataclasses.replace(spec, min_length=7, max_length=9).write(made, prompt)
    assert all(7 <= len(text.ids) <= 9 for text in long)
    free = dataclasses.replace(spec, max_length=9).write(made, prompt)
    assert any(len(text.ids) < 7 for text in free)


def test_without_a_greatest_length_the_context_is() -> None:
    made, prompt = decoding("alone", small=1), prompts(6, ragged=True)
    texts = GreedySpec(min_length=13).write(made, prompt)
    assert [len(text.ids) for text in texts] == [15, 14, 13] * 2, "16 in all, with eos and up to two ids of a prompt"
    with pytest.raises(InputError, match=r"is to write 14 ids, but .* 16, .* a prompt of 2 ids leaves 13: shorten"):
        GreedySpec(min_length=14).write(made, prompt)


@pytest.mark.parametrize("spec", [GreedySpec(), BeamSpec(beams=3, length_penalty=3.0)])
def test_a_longer_prompt_leaves_the_others_their_room(spec: GenerationSpec) -> None:
    made = decoding("alone")
    long = Text(torch.tensor([[2, *range(40, 50)], [2, *([0] * 10)]]).repeat(3, 1), torch.tensor([11, 1]).repeat(3))
    texts = spec.write(made, long)
    assert [len(text.ids) for text in texts[:2]] == [5, 15]
    rows = torch.tensor([1])
    assert spec.write(made.select(rows), Text(long.ids[1:2, :1], long.lengths[1:2]))[0].ids == texts[1].ids


def test_special_tokens_are_not_written() -> None:
    made = model("alone")
    tokenizer = made.decoders["writer"].tokenizer
    with torch.no_grad():
        made.decoders["writer"].output.weight.zero_()  # type: ignore[union-attr]  # all ids are as likely
    begun = Text(torch.full((64, 1), 2), torch.ones(64, dtype=torch.int64))
    texts = SamplingSpec(max_length=15, seed=1).write(Decoding(made, "writer", {}, 64), begun)
    ids = torch.tensor([index for text in texts for index in text.ids])
    assert ids.min() > 4
    assert ids.max() < tokenizer.size  # type: ignore[operator]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", [GreedySpec, BeamSpec])
def test_no_run_is_written_twice(kind: Any, size: int) -> None:
    made, prompt = decoding("cross", small=3), prompts(6, ragged=False)
    texts = kind(min_length=0, max_length=12, no_repeat_ngram=size).write(made, prompt)
    free = GreedySpec(min_length=10, max_length=12).write(made, prompt)
    assert any(runs(text.ids, size)[0] > runs(text.ids, size)[1] for text in free), "it would have repeated itself"
    assert all(runs(text.ids, size)[0] == runs(text.ids, size)[1] for text in texts)


def runs(ids: list[int], size: int) -> tuple[int, int]:
    made = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(made), len(set(made))


def test_runs_of_a_prompt_count_and_its_padding_does_not() -> None:
    prompt = Text(torch.tensor([[2, 10, 11, 10], [2, 10, 0, 0]]), torch.tensor([4, 2]))
    history = begin_history(prompt)
    assert history.tolist() == [[2, 10, 11, 10], [-1, -1, 2, 10]]
    spec = GreedySpec(no_repeat_ngram=2)
    banned = log_probabilities(torch.zeros(2, 20), history, FREE.expand(2), spec, (EOS,)).isneginf()
    assert banned.nonzero().tolist() == [[0, 11]]


def test_what_a_prompt_begins_with_counts() -> None:
    """As in transformers; GPT-2's texts begin with nothing: their first id is theirs."""
    prompt = Text(torch.tensor([[10, 11, 10], [2, 11, 2], [12, 0, 0]]), torch.tensor([3, 3, 1]))
    assert begin_history(prompt).tolist() == [[10, 11, 10], [2, 11, 2], [-1, -1, 12]]
    made = decoding("alone", 2)
    begun = Text(torch.tensor([[10, 11, 12], [13, 0, 0]]), torch.tensor([3, 1]))
    for spec in (GreedySpec(max_length=9, no_repeat_ngram=1), BeamSpec(max_length=9, beams=3, no_repeat_ngram=1)):
        texts = [text.ids for text in spec.write(made, begun)]
        assert not {10, 11, 12} & {*texts[0]} and 13 not in texts[1]
        assert all(len({*ids}) == len(ids) for ids in texts)
    with pytest.raises(InputError, match=r"with eos and a prompt of 3 ids leaves 13: shorten"):
        GreedySpec(min_length=14).write(made, begun)


@pytest.mark.parametrize("kind", [GreedySpec, BeamSpec])
def test_a_total_length_counts_what_stands_before(kind: Any) -> None:
    """Each text by its own prompt: a longer one leaves less to write."""
    made, prompt = decoding("cross", small=2), prompts(6, ragged=True)
    free = kind(total_length=12).write(made, prompt)
    texts = kind(total_length=12, total_min_length=9).write(made, prompt)
    assert any(len(text.ids) < 9 - length for text, length in zip(free, prompt.lengths.tolist(), strict=True))
    for row, length in enumerate(prompt.lengths.tolist()):
        alone, at = Text(prompt.ids[row : row + 1, :length], prompt.lengths[row : row + 1]), torch.tensor([row])
        spec = kind(min_length=9 - length, max_length=12 - length)
        assert texts[row].ids == spec.write(made.select(at), alone)[0].ids


def test_a_text_ends_where_nothing_else_may_be_written() -> None:
    logits = torch.full((1, 6), float("-inf"))
    logits[0, 5] = 0.0
    history = torch.tensor([[5]])
    logits[0, EOS] = 0.0
    made = log_probabilities(logits, history, ~FREE, GreedySpec(min_length=3, no_repeat_ngram=1), (EOS,))
    expected = [-math.inf] * 6
    expected[EOS] = math.log(0.5)  # as likely as it was
    assert made[0].tolist() == pytest.approx(expected)


def test_the_penalty_makes_repeated_ids_less_likely() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    made = log_probabilities(logits, torch.tensor([[0, 1, -1]]), FREE, GreedySpec(repetition_penalty=2.0), (EOS,))
    assert torch.allclose(made, torch.tensor([[1.0, -4.0, 1.0, 0.5]]).log_softmax(-1))


@pytest.mark.parametrize("options", [{"min_length": 3}, {"no_repeat_ngram": 1}])
def test_what_is_forbidden_leaves_the_others_as_likely_as_they_were(options: dict[str, int]) -> None:
    logits, history = torch.randn(3, 9), torch.tensor([[5], [6], [7]])
    short = ~FREE.expand(3)
    made = log_probabilities(logits, history, short, GreedySpec(**options), (EOS,))  # type: ignore[arg-type]
    banned = made.isneginf()
    assert banned.sum(1).tolist() == [1, 1, 1]
    assert torch.equal(made[~banned], logits.log_softmax(-1)[~banned])


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, -1)
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    for options, expected in (
        ({}, [500, 300, 150, 50]),
        ({"top_k": 2}, [625, 375, 0, 0]),
        ({"top_p": 0.6}, [625, 375, 0, 0]),
        ({"top_p": 0.5}, [1000, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.99}, [526, 316, 158, 0]),
        ({"temperature": 0.5}, [685, 246, 62, 7]),
    ):
        chosen = SamplingSpec(**options).choose(logits, uniform)  # type: ignore[arg-type]
        found = torch.bincount(chosen, minlength=4).tolist()
        assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), (options, found)


def test_all_of_the_mass_is_all_ids() -> None:
    logits = torch.zeros(1, 8000)
    logits[0, 4000:] = -17.0  # their shares round away where sums are of 32 bits
    chosen = SamplingSpec(top_p=1.0).choose(logits, torch.full((1,), 1 - 1e-12, dtype=torch.float64))
    assert int(chosen) == 7999


def test_a_draw_at_the_very_end_is_still_one_that_is_kept() -> None:
    logits = torch.randn(64, 100)
    kept = logits.topk(5, -1).indices
    chosen = SamplingSpec(top_k=5).choose(logits, torch.full((64,), 1 - 2**-53, dtype=torch.float64))
    assert (kept == chosen[:, None]).any(1).all()


def test_seeds_differ_and_repeat() -> None:
    made, prompt = decoding("cross"), prompts(6, ragged=False)
    a, b, again = (SamplingSpec(max_length=6, seed=seed).write(made, prompt) for seed in (1, 2, 1))
    assert [text.ids for text in a] == [text.ids for text in again]
    assert [text.ids for text in a] != [text.ids for text in b]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (GreedySpec, {"min_length": -1}, "GreedySpec.min_length must be at least 0"),
        (GreedySpec, {"min_length": 5, "max_length": 4}, "max_length must be None, or at least 1 and .* min_length"),
        (GreedySpec, {"max_length": 0}, "max_length must be"),
        (GreedySpec, {"repetition_penalty": 0.0}, "repetition_penalty must be positive and finite"),
        (GreedySpec, {"repetition_penalty": math.inf}, "repetition_penalty must be positive and finite"),
        (GreedySpec, {"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0"),
        (GreedySpec, {"total_length": 0}, "total_length must be None, or at least 1 and without max_length"),
        (GreedySpec, {"total_length": 5, "max_length": 4}, "total_length must be None, or at least 1 and without max"),
        (GreedySpec, {"total_min_length": -1}, "total_min_length must be 0, or more and without min_length"),
        (GreedySpec, {"total_min_length": 5, "min_length": 4}, "total_min_length must be 0, or more and without min"),
        (SamplingSpec, {"temperature": 0.0}, "temperature must be positive and finite"),
        (SamplingSpec, {"temperature": math.inf}, "temperature must be positive and finite"),
        (SamplingSpec, {"top_k": 0}, "top_k must be None or at least 1"),
        (SamplingSpec, {"top_p": 0.0}, "top_p must be above 0"),
        (SamplingSpec, {"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        (SamplingSpec, {"seed": -1}, "seed must be from 0"),
        (BeamSpec, {"beams": 0}, "beams must be at least 1"),
        (BeamSpec, {"length_penalty": math.nan}, "length_penalty must be from 0 to 10"),
        (BeamSpec, {"length_penalty": 1e6}, "length_penalty must be from 0 to 10"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**fields)


def test_a_decoder_or_its_memory_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"There is no decoder 'writr': the model's are writer. Did you mean 'writer'"):
        Decoding(model("alone"), "writr", {}, 1)
    with pytest.raises(InputError, match="The decoder 'writer' reads 'image', but nothing of it was handed in"):
        Decoding(model("cross"), "writer", {}, 1)
