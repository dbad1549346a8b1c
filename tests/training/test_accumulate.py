"""Cutting a batch into micro-batches changes no gradient: also of losses that couple the samples, also with dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny import in_double, tiny_batch, tiny_model
from torch import Tensor, nn

from mmformer.models.model import Model
from mmformer.nn.pool import LastPoolSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.training.accumulate import _dropout, accumulate, split
from mmformer.types import Batch, LossTerm, Outputs

TEXTS = ["red", "a small blue square, on the left", "red", "green", "", "orange and large and far away", "blue", "pink"]
CONTRASTIVE, CLASSIFICATION = ContrastiveSpec(chunk=3), ClassificationSpec(head="colour", weight=0.3, smoothing=0.1)
CAPTIONING = CaptioningSpec(weight=0.5)
SETS: dict[str, dict[str, ObjectiveSpec]] = {
    "contrastive": {"contrastive": CONTRASTIVE},
    "classification": {"colour": CLASSIFICATION},
    "both": {"contrastive": CONTRASTIVE, "colour": CLASSIFICATION},
    "captioning": {"captioning": CAPTIONING},
    "contrastive and captioning": {"contrastive": CONTRASTIVE, "captioning": CAPTIONING},
}


def batch() -> Batch:
    made = tiny_batch(TEXTS)
    return made._replace(labels={"colour": torch.tensor([0, 1, 0, -1, 4, -1, -1, 2])})


def model(dropout: float = 0.0) -> Model:
    """Its texts are their last tokens: of those alone the last feed-forward is computed."""
    spec = tiny_model(dropout, classes=8, caption=True)
    text = dataclasses.replace(spec.encoders["text"], pool=LastPoolSpec())
    built = dataclasses.replace(spec, encoders={**spec.encoders, "text": text}).build().train()
    built.initialise(1)
    with torch.no_grad():
        built.decoders["caption"].tokenizer.weight.mul_(20)  # type: ignore[operator, union-attr]  # some words are likelier
    return built


def gradients(
    specs: Mapping[str, ObjectiveSpec],
    parts: int,
    dropout: float = 0.0,
    bf16: bool = False,
    seed: int = 7,
    given: Batch | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameter -> gradient, and what is reported; in float64, where 1e-6 is the cut's and no processor's rounding."""
    built = model(dropout) if bf16 else in_double(model(dropout))
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        reported = accumulate(
            built,
            {name: spec.build() for name, spec in specs.items()},
            {name: spec.weight for name, spec in specs.items()},
            given or batch(),
            parts,
            lambda loss: loss.backward(),
        )
    return {name: p.grad for name, p in built.named_parameters() if p.grad is not None}, reported


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each within a share of the largest value of its own parameter, or of 1."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("objectives", SETS)
def test_gradients_do_not_depend_on_the_parts(objectives: str, parts: int) -> None:
    whole, reported = gradients(SETS[objectives], 1)
    cut, reported_cut = gradients(SETS[objectives], parts)
    assert_close(cut, whole, 1e-6)
    assert_close(reported_cut, reported, 1e-6)
    assert {name.split("/")[0] for name in reported} == {"loss", *SETS[objectives]}
    assert all(not value.requires_grad for value in reported_cut.values())


@pytest.mark.parametrize("objectives", SETS)
def test_bfloat16_is_near(objectives: str) -> None:
    whole, _ = gradients(SETS[objectives], 1, bf16=True)
    cut, _ = gradients(SETS[objectives], 4, bf16=True)
    exact, _ = gradients(SETS[objectives], 1)
    assert_close(cut, whole, 2e-2)
    for name, value in exact.items():
        assert cut[name].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(cut[name].flatten(), value.flatten(), dim=0)
        assert cosine > 0.98 or value.abs().max() < 1e-4, name


def test_the_loss_is_the_weighted_sum_of_the_means() -> None:
    built, given = model(), batch()
    outputs = built(given)
    contrastive = CONTRASTIVE.build().losses(outputs, given)["image_text"].total / 8
    classification = CLASSIFICATION.build().losses(outputs, given)["cross_entropy"].total / 5
    for parts in (1, 2):
        _, reported = gradients(SETS["both"], parts)
        assert torch.allclose(reported["loss"], contrastive + 0.3 * classification, atol=1e-5)
        assert torch.allclose(reported["contrastive/image_text"], contrastive, atol=1e-5)
        assert torch.allclose(reported["colour/cross_entropy"], classification, atol=1e-5)


def test_captions_are_weighed_by_their_tokens_whatever_micro_batch_they_are_in() -> None:
    """One text of each part is long, the rest are short: a mean of the parts' means would be another number."""
    given = tiny_batch(["a small blue square, on the left of it", "red", "", "", "green", "", "", "blue"])
    built = in_double(model())
    assert given.text is not None
    each = built(given.rows(slice(0, 2))).losses["caption"], built(given.rows(slice(2, 8))).losses["caption"]
    tokens = given.text.lengths.sum()
    expected = 0.5 * (each[0].total + each[1].total) / tokens
    parts_mean = 0.5 * sum(term.total / term.items for term in each) / 2
    assert not torch.allclose(expected, parts_mean, rtol=1e-3), "the test can tell"
    for parts in (1, 2, 4, 8):
        _, reported = gradients(SETS["captioning"], parts, given=given)
        assert torch.allclose(reported["loss"], expected, rtol=1e-5)
        assert torch.allclose(reported["captioning/cross_entropy"], 2 * expected, rtol=1e-5)


def test_weights_act() -> None:
    one, _ = gradients({"colour": ClassificationSpec(head="colour")}, 2)
    three, _ = gradients({"colour": ClassificationSpec(head="colour", weight=3.0)}, 2)
    assert_close(three, {name: 3 * value for name, value in one.items()}, 1e-6)


def test_gradients_add_to_what_is_there() -> None:
    """``.grad`` is the caller's to clear."""
    built = in_double(model())
    for _ in range(2):
        objectives = {"contrastive": CONTRASTIVE.build()}
        accumulate(built, objectives, {"contrastive": 1.0}, batch(), 2, lambda loss: loss.backward())
    once, _ = gradients(SETS["contrastive"], 1)
    twice = {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
    assert_close(twice, {name: 2 * value for name, value in once.items()}, 1e-6)


def test_the_second_pass_replays_the_dropout_of_the_first() -> None:
    """Against one graph through all micro-batches, each run once with the same random stream."""
    found, reported = gradients({**SETS["both"], "captioning": CAPTIONING}, 4, dropout=0.3)
    built, given = in_double(model(0.3)), batch()
    torch.manual_seed(7)
    seeds = torch.randint(2**62, (4,)).tolist()
    parts = []
    for seed, part in zip(seeds, split(given, 4), strict=True):
        with _dropout(seed):
            parts.append(built(part, tokens=False))
    together = Outputs.empty()._replace(
        embedding={name: torch.cat([part.embedding[name] for part in parts]) for name in ("image", "text")},
        logits={"colour": torch.cat([part.logits["colour"] for part in parts])},
        scale=parts[0].scale,
    )
    loss = CONTRASTIVE.build().losses(together, given)["image_text"].total / 8
    loss = loss + 0.3 * CLASSIFICATION.build().losses(together, given)["cross_entropy"].total / 5
    assert given.text is not None
    written = torch.stack([part.losses["caption"].total for part in parts]).sum()
    loss = loss + 0.5 * written / given.text.lengths.sum()
    loss.backward()
    assert_close(found, {name: p.grad for name, p in built.named_parameters() if p.grad is not None}, 1e-6)
    assert torch.allclose(reported["loss"], loss.detach(), atol=1e-5)


def test_dropout_is_a_function_of_the_stream_and_differs_between_parts() -> None:
    for objectives in SETS.values():
        one, _ = gradients(objectives, 4, dropout=0.3)
        again, _ = gradients(objectives, 4, dropout=0.3)
        other, _ = gradients(objectives, 4, dropout=0.3, seed=8)
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert any(not torch.allclose(one[name], other[name]) for name in one)
    built = model(0.5)
    alike = tiny_batch(["red"] * 4)
    assert alike.image is not None
    alike = alike._replace(image=alike.image[:1].expand(4, -1, -1, -1))
    seen: list[Tensor] = []
    objective = ContrastiveSpec(same_caption_positive=False).build()
    losses = objective.losses
    objective.losses = lambda outputs, given: (  # type: ignore[method-assign]
        seen.append(outputs.embedding["image"].detach()),
        losses(outputs, given),
    )[1]
    accumulate(built, {"contrastive": objective}, {"contrastive": 1.0}, alike, 2, lambda loss: loss.backward())
    assert not torch.allclose(seen[0][0], seen[0][2]), "the same picture in two parts"


def test_parts_are_cut_in_order_and_no_longer_than_they_must_be() -> None:
    given = batch()
    given = given._replace(text=tiny_batch(TEXTS[:4] + ["a"] * 4).text)
    parts = split(given, 2)
    assert [part.keys for part in parts] == [given.keys[:4], given.keys[4:]]
    assert given.image is not None
    assert torch.equal(torch.cat([part.image for part in parts if part.image is not None]), given.image)
    assert torch.equal(torch.cat([part.labels["colour"] for part in parts]), given.labels["colour"])
    assert given.text is not None
    assert [part.text.ids.shape for part in parts if part.text is not None] == [given.text.ids[:4].shape, (4, 8)]
    no_text = split(given._replace(text=None), 4)
    assert all(part.text is None for part in no_text)
    assert all(part.image is None for part in split(given._replace(image=None), 4))


# ------------------------------------------------------------------------------------------------- who sees what


class Spying:
    """An objective that keeps what it is handed; it reads tokens."""

    reads_tokens = True

    def __init__(self, inner: Objective) -> None:
        self.inner, self.couples_samples = inner, inner.couples_samples
        self.seen: list[tuple[Outputs, Batch]] = []

    def finds(self, outputs: Outputs) -> bool:
        return self.inner.finds(outputs)

    def items(self, given: Batch) -> dict[str, Tensor]:
        return self.inner.items(given)

    def losses(self, outputs: Outputs, given: Batch) -> dict[str, LossTerm]:
        self.seen.append((outputs, given))
        return self.inner.losses(outputs, given)


@pytest.mark.parametrize("parts", [1, 4])
def test_only_what_couples_samples_is_gathered(parts: int) -> None:
    """Embeddings and scales of the whole batch for the one; everything of a micro-batch, with its graph, for others."""
    contrastive, colour = Spying(CONTRASTIVE.build()), Spying(CLASSIFICATION.build())
    objectives: Any = {"colour": colour, "contrastive": contrastive}
    accumulate(model(), objectives, {"colour": 1.0, "contrastive": 1.0}, batch(), parts, lambda loss: loss.backward())
    ((whole, given),) = contrastive.seen
    assert len(given.keys) == 8
    assert whole.embedding["image"].shape == (8, 12)
    assert list(whole.scale) == ["contrastive"]
    assert not whole.logits
    assert not whole.tokens
    assert [tuple(outputs.logits["colour"].shape) for outputs, _ in colour.seen] == [(8 // parts, 8)] * parts
    assert [len(part.keys) for _, part in colour.seen] == [8 // parts] * parts
    assert all(set(outputs.tokens) == {"image", "text", "caption"} for outputs, _ in colour.seen)
    assert all(outputs.logits["colour"].requires_grad for outputs, _ in colour.seen)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("objectives", ["classification", "both"])
def test_a_batch_without_labels_has_no_nan(objectives: str, bf16: bool) -> None:
    unlabelled = batch()._replace(labels={"colour": torch.full((8,), -1)})
    found = [gradients(SETS[objectives], parts, bf16=bf16, given=unlabelled) for parts in (1, 2, 4)]
    for gradient, reported in found:
        assert reported["colour/cross_entropy"] == 0
        assert all(value.isfinite().all() for value in [*gradient.values(), *reported.values()])
        assert (gradient["heads.colour.projection.weight"] == 0).all()
        assert_close(gradient, found[0][0], 2e-2 if bf16 else 1e-6)
    if objectives == "both":
        alone, reported = gradients(SETS["contrastive"], 2, bf16=bf16)
        assert torch.allclose(found[1][1]["loss"], reported["loss"])
        assert_close({name: found[1][0][name] for name in alone}, alone, 1e-6)


def test_labels_in_one_micro_batch_alone_weigh_as_they_do_in_the_whole() -> None:
    uneven = batch()._replace(labels={"colour": torch.tensor([-1, -1, -1, -1, -1, -1, 3, -1])})
    whole, reported = gradients(SETS["both"], 1, given=uneven)
    for parts in (2, 4, 8):
        cut, reported_cut = gradients(SETS["both"], parts, given=uneven)
        assert_close(cut, whole, 1e-6)
        assert_close(reported_cut, reported, 1e-6)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("objectives", SETS)
def test_every_objective_has_a_weight(objectives: str, parts: int) -> None:
    built = {name: spec.build() for name, spec in SETS[objectives].items()}
    with pytest.raises(KeyError):
        accumulate(model(), built, {}, batch(), parts, lambda loss: loss.backward())


def test_aux_is_no_name_of_an_objective() -> None:
    with pytest.raises(AssertionError, match="the name aux is that of what layers ask for"):
        accumulate(model(), {"aux": CONTRASTIVE.build()}, {"aux": 1.0}, batch(), 1, lambda loss: loss.backward())


class Balanced(nn.Module):
    """A model whose layers ask for a loss of their own, as a router does."""

    def __init__(self, items: float = 1.0) -> None:
        super().__init__()
        self.inner, self.items = model(), items
        self.balance = nn.Parameter(torch.tensor([2.0]))

    def forward(self, given: Batch, decode: bool = True, tokens: bool = True) -> Outputs:
        outputs = self.inner(given, decode=decode, tokens=tokens)
        assert given.image is not None
        asked = (self.balance * given.image.float().mean((1, 2, 3))).square().sum()
        return outputs._replace(aux={"image/balance": LossTerm(asked, torch.tensor(self.items * len(given.keys)))})


@pytest.mark.parametrize("objectives", SETS)
def test_what_layers_ask_for_counts_once(objectives: str) -> None:
    found = []
    for parts in (1, 2, 4):
        balanced = Balanced()
        reported = accumulate(
            balanced,  # type: ignore[arg-type]
            {name: spec.build() for name, spec in SETS[objectives].items()},
            {name: spec.weight for name, spec in SETS[objectives].items()},
            batch(),
            parts,
            lambda loss: loss.backward(),
        )
        gradient = balanced.balance.grad
        assert gradient is not None
        found.append((gradient / 1e4, reported["loss"] / 1e4, reported["aux/image/balance"] / 1e4))
    for cut in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(cut, found[0], strict=True))


@pytest.mark.parametrize("objectives", SETS)
@pytest.mark.parametrize("parts", [1, 2])
def test_layers_that_ask_for_nothing_in_a_batch_make_no_nan(objectives: str, parts: int) -> None:
    balanced = Balanced(items=0.0)
    with torch.no_grad():
        balanced.balance.zero_()
    built = {name: spec.build() for name, spec in SETS[objectives].items()}
    weights = {name: spec.weight for name, spec in SETS[objectives].items()}
    reported = accumulate(balanced, built, weights, batch(), parts, lambda loss: loss.backward())  # type: ignore[arg-type]
    assert all(value.isfinite() for value in reported.values())
    assert all(p.grad.isfinite().all() for p in balanced.parameters() if p.grad is not None)
    assert reported["aux/image/balance"] == 0
