"""The captioning objective is a decoder's own loss over its tokens, and says what it lacks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.spec import Parts
from mmformer.types import Batch, LossTerm, Outputs, Text

TEXTS = ["red", "a small blue square", ""]


def build() -> Model:
    model = tiny_model(caption=True).build().eval()
    model.initialise(0)
    return model


def test_the_loss_is_the_decoders_over_tokens() -> None:
    """Each token's logits come from the pass that made its loss; the mean is over all tokens, not over captions."""
    model, batch = build(), tiny_batch(TEXTS)
    outputs, objective = model(batch), CaptioningSpec().build()
    decoder = model.decoders["caption"]
    assert isinstance(decoder, Decoder)
    assert batch.text is not None
    logits = decoder.logits(outputs.tokens["caption"].x)
    total = sum(
        F.cross_entropy(row[:length], ids[:length], reduction="sum").item()
        for row, ids, length in zip(logits, batch.text.ids, batch.text.lengths.tolist(), strict=True)
    )
    ((name, term),) = objective.losses(outputs, batch).items()
    assert name == "cross_entropy"
    assert math.isclose(term.total.item(), total, rel_tol=1e-5)
    assert math.isclose(total / term.items.item(), math.log(8192), rel_tol=0.01), "untrained, it knows nothing"
    assert {key: float(n) for key, n in objective.items(batch).items()} == {"cross_entropy": term.items.item()}
    assert term.items == batch.text.lengths.sum()
    assert not objective.couples_samples


def test_an_empty_caption_has_one_token_its_end() -> None:
    batch = tiny_batch([""])
    assert CaptioningSpec().build().items(batch)["cross_entropy"] == 1
    assert build()(batch).losses["caption"].total > 0


def test_it_counts_what_is_written() -> None:
    """The target where there is one, and the text where there is none."""
    target = Text(torch.full((3, 8), 7), torch.tensor([2, 8, 5]))
    batch, objective = tiny_batch(TEXTS), CaptioningSpec().build()
    assert objective.items(batch._replace(target=target))["cross_entropy"] == 15
    assert objective.items(batch._replace(target=target, text=None))["cross_entropy"] == 15
    assert batch.text is not None
    begun = batch._replace(text=batch.text._replace(begun=True))
    assert objective.items(begun)["cross_entropy"] == batch.text.lengths.sum() - len(TEXTS), "bos is not written"
    model = build()
    for given in (batch, batch._replace(target=target), begun):
        assert objective.losses(model(given), given)["cross_entropy"].items == objective.items(given)["cross_entropy"]


def test_the_decoder_is_found_by_name() -> None:
    terms = {name: LossTerm(torch.tensor(total), torch.tensor(2.0)) for name, total in (("caption", 1.0), ("de", 3.0))}
    outputs = Outputs.empty()._replace(losses=terms)
    for name in terms:
        (term,) = CaptioningSpec(decoder=name).build().losses(outputs, tiny_batch(TEXTS)).values()
        assert term is terms[name]


DECODERS: dict[str, Any] = {"caption": object(), "translation": object()}


@pytest.mark.parametrize(
    ("decoder", "decoders", "message"),
    [
        (
            "captoin",
            DECODERS,
            "A captioning objective reads the decoder 'captoin', but the model's decoders are caption, translation. "
            "Did you mean 'caption'?",
        ),
        ("caption", {}, "A captioning objective reads the decoder 'caption', but the model's decoders are none."),
    ],
)
def test_a_model_that_does_not_fit_is_refused(decoder: str, decoders: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CaptioningSpec(decoder=decoder).check(Parts({"image": 4}, {}, decoders, ()))
    assert str(caught.value) == message
    CaptioningSpec(decoder="translation").check(Parts({"image": 4}, {}, DECODERS, ()))


def test_a_batch_that_lacks_something_has_no_loss() -> None:
    objective, model, batch = CaptioningSpec().build(), build(), tiny_batch(TEXTS)
    assert objective.items(Batch(("a",), {})) == {}
    assert objective.losses(model(batch), batch).keys() == {"cross_entropy"}
    lacks: tuple[Batch, ...] = (batch._replace(image=None), batch._replace(text=None))
    for given in lacks:
        assert objective.losses(model(given), given) == {}


def test_a_weight_is_positive() -> None:
    with pytest.raises(InputError, match=r"CaptioningSpec\.weight must be positive, but is 0"):
        CaptioningSpec(weight=0.0)
