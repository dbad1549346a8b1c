"""Retrieval with several captions of each picture: the protocol of COCO and Flickr30k, against brute force."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from tiny import SIDE, VOCABULARY, tiny_batch, tiny_model
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.metric import evaluate
from mmformer.evaluation.retrieval import RetrievalSpec, ranks
from mmformer.tokenizers.text import TextTokensSpec

ENCODERS = {"text": TextTokensSpec(VOCABULARY, context_length=16).encoder()}
CAPTIONS = (
    ("red", "a red one"),
    ("a blue square",),
    ("green", "so green", "a leaf"),
    ("pink", "black"),
    ("black and white",),
)
SPEC = RetrievalSpec(recall=(1, 2, 5), references=True)


def test_any_own_caption_counts_and_each_looks_for_its_picture() -> None:
    model = tiny_model().build().eval()
    model.initialise(0)
    batch = tiny_batch([""] * 5, (SIDE, SIDE))._replace(references=CAPTIONS)
    scores = evaluate(model, [batch.rows(slice(0, 2)), batch.rows(slice(2, 5))], {"r": SPEC}, ENCODERS)
    with torch.no_grad():
        image = F.normalize(model(batch).embedding["image"], dim=1)
        texts = [text for own in CAPTIONS for text in own]
        owner = [place for place, own in enumerate(CAPTIONS) for _ in own]
        text = F.normalize(
            model(batch._replace(image=None, text=ENCODERS["text"].encode(texts))).embedding["text"], dim=1
        )
    similarity = (image @ text.T).tolist()
    to_text = []
    for row in range(5):
        order = sorted(range(9), key=lambda column, x=similarity[row]: -x[column])  # type: ignore[misc]
        to_text.append(1 + min(order.index(column) for column in range(9) if owner[column] == row))
    to_image = []
    for column in range(9):
        order = sorted(range(5), key=lambda row, c=column: -similarity[row][c])  # type: ignore[misc]
        to_image.append(1 + order.index(owner[column]))
    for way, expected in (("image_to_text", to_text), ("text_to_image", to_image)):
        for k in (1, 2, 5):
            assert scores[f"r/{way}/R@{k}"].value == pytest.approx(100 * sum(r <= k for r in expected) / len(expected))
        assert scores[f"r/{way}/median_rank"].value == statistics.median(expected)


def test_chance_is_that_of_drawing_captions() -> None:
    model = tiny_model().build().eval()
    model.initialise(0)
    batch = tiny_batch([""] * 5, (SIDE, SIDE))._replace(references=CAPTIONS)
    scores = evaluate(model, [batch], {"r": SPEC}, ENCODERS)
    sizes = [len(own) for own in CAPTIONS]
    missed = [math.comb(9 - own, 2) / math.comb(9, 2) for own in sizes]
    assert scores["r/image_to_text/R@2"].chance == pytest.approx(100 * (1 - sum(missed) / 5))
    assert scores["r/text_to_image/R@2"].chance == pytest.approx(40)
    assert scores["r/image_to_text/median_rank"].chance is None
    assert scores["r/text_to_image/median_rank"].chance == 3


def test_ties_and_nan_count_against_the_model() -> None:
    owners = (torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    same = torch.ones(2, 3)
    assert ranks(same, torch.ones(3, 3), owners=owners).tolist() == [2, 3], "all wrong ones stand before"
    broken = torch.ones(3, 3)
    broken[1] = math.nan
    assert ranks(same, broken, owners=owners).tolist() == [2, 3]


def test_what_is_missing_is_said() -> None:
    model = tiny_model().build().eval()
    model.initialise(0)
    batch = tiny_batch(["x"] * 3, (SIDE, SIDE))
    for references in (None, (("a",), (), ("b",))):
        with pytest.raises(InputError, match="references is true, but the data has none, or none of some sample"):
            evaluate(model, [batch._replace(references=references)], {"r": SPEC}, ENCODERS)
    with pytest.raises(InputError, match="the data has nothing that this encoder reads"):
        evaluate(model, [batch._replace(text=None)], {"r": RetrievalSpec()}, ENCODERS)


def test_details_say_what_was_found() -> None:
    model = tiny_model().build().eval()
    model.initialise(0)
    metric = SPEC.build()
    batch = tiny_batch([""] * 5, (SIDE, SIDE))._replace(references=CAPTIONS)
    with torch.no_grad():
        metric.start(model, ENCODERS, torch.device("cpu"))
        metric.update(model(batch), batch)
    ways = metric.details().ways
    assert list(ways) == ["image_to_text", "text_to_image"]
    to_text, to_image = (details.cases for details in ways.values())
    assert [case.right.partition(" (rank ")[0] for case in to_text] == [own[0] for own in CAPTIONS]
    texts = {text for own in CAPTIONS for text in own}
    for case, own in zip(to_text, CAPTIONS, strict=True):
        assert case.said in texts
        assert (case.goodness == -1) == (case.said in own)
        assert case.found is None, "a text has no picture"
    owners = [(text, number) for number, own in enumerate(CAPTIONS) for text in own]
    for case, (text, number) in zip(to_image, owners, strict=True):
        assert (case.right.partition(" (rank ")[0], case.number) == (text, number), "each caption looks for its picture"
        assert case.found is not None
        assert (case.goodness == -1) == (case.found == number)
        assert case.said == CAPTIONS[case.found][0]
