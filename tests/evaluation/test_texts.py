"""Perplexity against the decoder's own loss, and translations against sacreBLEU."""

from __future__ import annotations

import math

import pytest
import torch
from bundles import SIDE, trimodal_model
from tiny import tiny_batch

from mmformer.errors import InputError
from mmformer.evaluation.metric import evaluate
from mmformer.evaluation.perplexity import PerplexitySpec
from mmformer.evaluation.translation import TranslationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.models.model import Model
from mmformer.spec import Parts

TEXTS = ["a red square, left", "größer", "green"]


def build() -> Model:
    model = trimodal_model().build().eval()
    model.initialise(0)
    return model


def test_perplexity_is_of_the_decoders_loss() -> None:
    model, batch = build(), tiny_batch(TEXTS, (SIDE, SIDE))
    encoders = model.spec.text_encoders()
    scores = evaluate(
        model, [batch.rows(slice(0, 2)), batch.rows(slice(2, 3))], {"p": PerplexitySpec("caption")}, encoders
    )
    with torch.no_grad():
        total, tokens, minimised = model(batch).losses["caption"]
    assert minimised
    assert scores["p/perplexity"].value == pytest.approx(math.exp(float(total / tokens)), rel=1e-5)
    bits = float(total) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert scores["p/bits_per_byte"].value == pytest.approx(bits, rel=1e-5)
    pieces = len(encoders["target"].vocabulary)
    assert scores["p/perplexity"].chance == pieces
    assert scores["p/bits_per_byte"].chance == pytest.approx(
        bits * math.log(pieces) * float(tokens) / float(total), rel=1e-5
    )


def test_perplexity_needs_texts_and_a_decoder() -> None:
    model, batch = build(), tiny_batch(TEXTS, (SIDE, SIDE))
    with pytest.raises(InputError, match=r"PerplexitySpec.decoder is 'captoin', but .* Did you mean 'caption'"):
        PerplexitySpec("captoin").check(Parts({}, {}, {"caption": object()}, ()))
    with pytest.raises(InputError, match="Perplexity is of the texts of samples, but the batch has none"):
        evaluate(model, [batch._replace(text=None)], {"p": PerplexitySpec("caption")}, model.spec.text_encoders())
    with pytest.raises(InputError, match="Perplexity was asked for, but there was no sample"):
        PerplexitySpec("caption").build().compute()


def test_details_say_the_bits_of_each_text() -> None:
    model, batch = build(), tiny_batch(TEXTS, (SIDE, SIDE))
    metric = PerplexitySpec("caption").build()
    with torch.no_grad():
        metric.start(model, model.spec.text_encoders(), torch.device("cpu"))
        metric.update(model(batch, decode=False), batch)
    score = metric.compute()["bits_per_byte"].value
    cases = metric.details().cases
    assert [case.right for case in cases] == TEXTS
    sizes = [len(text.encode()) for text in TEXTS]
    mean = -sum(case.goodness * size for case, size in zip(cases, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(score)


def test_translations_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    model, batch = build(), tiny_batch(TEXTS, (SIDE, SIDE))
    encoders = model.spec.text_encoders()
    spec = TranslationSpec("caption", GreedySpec(max_length=6))
    memory = model(batch, decode=False).tokens
    written = write_texts(model, "caption", memory, [""] * 3, spec.generation)
    known = ((written[0] + " more", "none"), (written[1],), ("other words",))
    referenced = batch._replace(references=known)
    scores = evaluate(model, [referenced.rows(slice(0, 1)), referenced.rows(slice(1, 3))], {"t": spec}, encoders)
    streams = [[known[0][0], written[1], "other words"], ["none", None, None]]
    assert scores["t/BLEU"].value == pytest.approx(sacrebleu.corpus_bleu(written, streams).score)
    assert scores["t/chrF"].value == pytest.approx(sacrebleu.corpus_chrf(written, streams).score)
    assert 0 < scores["t/chrF"].value < 100
    with pytest.raises(
        InputError, match=r"TranslationSpec.decoder is 'translate', but the model's decoders are caption"
    ):
        TranslationSpec().check(Parts({}, {}, {"caption": object()}, ()))
