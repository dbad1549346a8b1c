"""Captions against references: by hand for small cases, and by what has to hold for any."""

from __future__ import annotations

import math

import pytest
import torch
from bundles import SIDE, trimodal_model
from tiny import tiny_batch

from mmformer.errors import InputError
from mmformer.evaluation.captions import CaptionsSpec, exact_match
from mmformer.evaluation.cider import cider
from mmformer.evaluation.metric import evaluate
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.spec import Parts
from mmformer.types import Batch, Text


def test_exact_match_is_of_words() -> None:
    references = [["a red  Heart"], ["dog", "hound"], ["cat"], ["sun"]]
    assert exact_match(["A red heart", "hound", "cats", ""], references) == 0.5


def test_cider_by_hand() -> None:
    """Two samples; 'a' is in both references, and so weighs nothing."""
    references = [["a cat"], ["a dog"]]
    # cat: run (cat) is log 2 in both, cosine 1; (a cat) likewise; no longer runs: 10 × (1 + 1) / 4.
    assert cider(["a cat", "a dog"], references) == pytest.approx(5.0)
    # 'cat' alone: (cat) agrees, (a cat) is missing; one word shorter.
    assert cider(["cat", "a dog"], references) == pytest.approx((2.5 * math.exp(-1 / 72) + 5) / 2)
    # 'cat cat': min(2, 1) log² 2 over 2 log 2 · log 2; no pair agrees.
    assert cider(["cat cat", "a dog"], references) == pytest.approx((2.5 * 0.5 + 5) / 2)
    assert cider(["a", "a"], references) == 0, "what all say is worth nothing"


def test_cider_is_ten_for_what_is_right_and_long_enough() -> None:
    texts = ["one two three four five", "six seven eight nine", "ten eleven twelve thirteen fourteen fifteen"]
    assert cider(texts, [[text] for text in texts]) == pytest.approx(10.0)
    assert cider([texts[1], texts[2], texts[0]], [[text] for text in texts]) == 0
    assert cider(["ONE  two three four five"], [[texts[0]]]) == pytest.approx(10.0)


def test_several_references_are_averaged() -> None:
    both = cider(["a b c d", "x y z w"], [["a b c d", "p q r s"], ["x y z w"]])
    assert both == pytest.approx((5.0 + 10.0) / 2)


def test_rare_words_weigh_more() -> None:
    references = [["red dog"], ["red cat"], ["red sun"], ["blue owl"]]
    rest = ["red cat", "red sun", "blue owl"]
    assert cider(["dog", *rest], references) > cider(["red", *rest], references) > cider(["green", *rest], references)


def test_the_metric_writes_with_the_decoder_and_reads_the_samples() -> None:
    model = trimodal_model().build().eval()
    model.initialise(0)
    encoders = model.spec.text_encoders()
    batch = tiny_batch(["a red square", "blue", "a green one"], (SIDE, SIDE))
    spec = CaptionsSpec(generation=GreedySpec(max_length=4))
    memory = model(batch, decode=False).tokens
    written = write_texts(model, "caption", memory, [""] * 3, spec.generation)
    perfect = batch._replace(target=encoders["target"].encode([written[0], "b", "c"]))
    scores = evaluate(model, [perfect], {"captions": spec}, encoders)
    assert scores["captions/exact_match"].value == pytest.approx(100 / 3)
    assert scores["captions/CIDEr"].value == pytest.approx(cider(written, [[written[0]], ["b"], ["c"]]))
    split = [perfect.rows(slice(0, 2)), perfect.rows(slice(2, 3))]
    assert evaluate(model, split, {"captions": spec}, encoders) == scores
    named = batch._replace(text=encoders["text"].encode(["a", written[1], "c"]))
    against_text = evaluate(model, [named], {"captions": spec}, encoders)["captions/exact_match"]
    assert against_text.value == pytest.approx(100 / 3), "without a target, the text"


def test_a_reference_that_was_cut_is_not_met_by_its_beginning() -> None:
    model = trimodal_model().build().eval()
    model.initialise(0)
    encoders = model.spec.text_encoders()
    batch = tiny_batch(["a"], (SIDE, SIDE))
    whole = encoders["target"].encode(["a b"])
    spec = CaptionsSpec(generation=GreedySpec(max_length=4))
    metric = spec.build()
    metric.start(model, encoders, torch.device("cpu"))
    cut = Text(whole.ids, whole.lengths - 1)
    for target in (whole, cut):
        metric.update(model(batch, decode=False), batch._replace(target=target))
    assert [text.strip() for (text,) in metric.rows.values("references")] == ["a b", "a b …"]


def test_cider_hears_no_punctuation() -> None:
    texts = ["one two three four", "six seven eight nine"]
    assert cider(["One, “two” three: four!", texts[1]], [[text] for text in texts]) == pytest.approx(10.0)
    assert cider(["#", "a b c d"], [["#"], ["a b c d"]]) == pytest.approx(6.25), "what is nothing else stays"


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match=r"CaptionsSpec.decoder is 'captoin', but the model's decoders are caption"):
        CaptionsSpec("captoin").check(Parts({}, {}, {"caption": object()}, ()))
    with pytest.raises(InputError, match="there was no sample"):
        CaptionsSpec().build().compute()
    model = trimodal_model().build().eval()
    model.initialise(0)
    batch: Batch = tiny_batch(["a"], (SIDE, SIDE))
    with pytest.raises(InputError, match="against the texts of samples, but the batch has none"):
        evaluate(model, [batch._replace(text=None)], {"c": CaptionsSpec()}, model.spec.text_encoders())
