"""The sigmoid loss against plain autograd over all pairs, in value and gradient, whatever its chunks or blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.head import ContrastiveHeadSpec
from mmformer.objectives.objective import ObjectiveSpec
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec, _SigmoidLoss, sigmoid_loss
from mmformer.spec import Parts
from mmformer.training.accumulate import accumulate
from mmformer.types import Outputs

OWN, SAME = torch.arange(7), torch.tensor([5, 3, 5, 1, 3, 5, 9])
HEAD = ContrastiveHeadSpec(temperature=0.1, lowest_temperature=None, bias=-10.0)


def inputs(rows: int = 7, columns: int = 7, width: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, y, scale and bias, where each pair matters: far from both ends of the sigmoid."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        F.normalize(torch.randn(number, width, generator=generator, dtype=dtype), dim=-1) for number in (rows, columns)
    )
    return [v.requires_grad_() for v in (x, y, torch.tensor([8.0], dtype=dtype), torch.tensor([-2.5], dtype=dtype))]


def reference(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Algorithm 1 with all logits at once; binary cross-entropy, by autograd."""
    target = (rows[:, None] == columns[None, :]).to(x.dtype)
    return F.binary_cross_entropy_with_logits(scale * x @ y.T + bias, target, reduction="sum")


def assert_same_gradients(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, **tolerance)


@pytest.mark.parametrize("same", [OWN, SAME, torch.zeros(7, dtype=torch.int64)], ids=["own", "some", "all"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_value_and_gradients_are_autograds_in_float64(same: Tensor, chunk: int) -> None:
    ours, plain = inputs(), inputs()
    loss, expected = _SigmoidLoss.apply(*ours, same, same, chunk), reference(*plain, same, same)
    assert torch.allclose(loss, expected, atol=0, rtol=1e-14)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    assert_same_gradients(ours, plain, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("chunk", [3, 7])
def test_gradients_pass_gradcheck(chunk: int) -> None:
    assert torch.autograd.gradcheck(lambda *args: _SigmoidLoss.apply(*args, SAME, SAME, chunk), inputs())


@pytest.mark.parametrize("chunk", [2, 100])
def test_blocks_of_any_shape_add_up_to_the_whole(chunk: int) -> None:
    """Rows and columns are told apart by their numbers alone, so that a block needs nothing of the rest."""
    ours, plain = inputs(), inputs()
    x, y, scale, bias = ours
    whole = _SigmoidLoss.apply(*plain, SAME, SAME, 100)
    parts = [
        _SigmoidLoss.apply(x[rows], y[columns], scale, bias, SAME[rows], SAME[columns], chunk)
        for rows in (slice(0, 3), slice(3, 7))
        for columns in (slice(0, 2), slice(2, 6), slice(6, 7))
    ]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-14, atol=0)
    torch.stack(parts).sum().backward()
    whole.backward()
    assert_same_gradients(ours, plain, atol=1e-13, rtol=1e-13)


def test_a_positive_wants_a_higher_logit_and_a_negative_a_lower() -> None:
    x, y, scale, bias = inputs(1, 1)
    for column, sign in ((0, 1.0), (1, -1.0)):
        loss = _SigmoidLoss.apply(x, y, scale, bias, OWN[:1], torch.tensor([column]), 4)
        assert torch.allclose(loss, -F.logsigmoid(sign * (scale * x @ y.T + bias)).sum())
        (gradient,) = torch.autograd.grad(loss, bias)
        assert sign * gradient < 0


def test_float32_under_autocast() -> None:
    x, y, scale, bias = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_loss(x, y, scale, bias, OWN, OWN)
        half = sigmoid_loss(x.bfloat16(), y.bfloat16(), scale, bias, OWN, OWN)
    assert loss.dtype == half.dtype == torch.float32
    assert torch.equal(loss, sigmoid_loss(x, y, scale, bias, OWN, OWN))
    assert torch.allclose(half, loss, rtol=1e-2)


def test_large_scales_do_not_overflow() -> None:
    x, y, _, _ = inputs(dtype=torch.float32)
    scale, bias = torch.tensor([1e5]).requires_grad_(), torch.tensor([-10.0]).requires_grad_()
    loss = sigmoid_loss(x, y, scale, bias, OWN, OWN)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value.grad).all() for value in (x, y, scale, bias) if value.grad is not None)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x, y, scale, bias = inputs()
    (gradient,) = torch.autograd.grad(sigmoid_loss(x, y, scale, bias, OWN, OWN), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_memory_grows_with_the_chunk() -> None:
    """What is kept for the backward pass is N E, whatever N squared would be."""
    kept: list[int] = []
    number = torch.arange(300)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        sigmoid_loss(*inputs(300, 300, 4), number, number, 16)
    assert sum(kept) <= 2 * 300 * 4 + 2


# ------------------------------------------------------------------------------------------------- the objective


TEXTS = ["red", "blue", "red", "green", "black", "blue"]


def outputs(*names: str, **biases: float) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    given = {"contrastive": -2.0} | biases
    return Outputs.empty()._replace(
        embedding={name: 3 * torch.randn(6, 4, generator=generator) for name in names},
        scale={name: torch.tensor([5.0]) for name in given},
        bias={name: torch.tensor([value]) for name, value in given.items()},
    )


def expected(made: Outputs, a: str, b: str, same: list[int] | None = None, head: str = "contrastive") -> Tensor:
    x, y = (F.normalize(made.embedding[name], dim=-1) for name in (a, b))
    number = torch.arange(6) if same is None else torch.tensor(same)
    return reference(x, y, made.scale[head], made.bias[head], number, number)


def test_embeddings_are_normalised_and_every_pair_has_its_loss() -> None:
    made, batch = outputs("image", "text", "audio"), tiny_batch(TEXTS)
    objective = SigmoidContrastiveSpec(pairs=(("image", "text"), ("audio", "text"))).build()
    losses = objective.losses(made, batch)
    assert list(losses) == ["image_text", "audio_text"]
    for (a, b), term in zip((("image", "text"), ("audio", "text")), losses.values(), strict=True):
        assert torch.allclose(term.total, expected(made, a, b, [0, 1, 0, 2, 3, 1]), atol=1e-5)
        assert term.items == 6, "the sum over all pairs is divided by the samples"
    assert {name: float(n) for name, n in objective.items(batch).items()} == {"image_text": 6, "audio_text": 6}
    assert objective.couples_samples


def test_same_captions_are_positives_by_a_switch() -> None:
    made, batch = outputs("image", "text"), tiny_batch(TEXTS)
    own = SigmoidContrastiveSpec(same_caption_positive=False).build().losses(made, batch)["image_text"].total
    assert torch.allclose(own, expected(made, "image", "text"), atol=1e-5)
    alike = SigmoidContrastiveSpec().build().losses(made, batch)["image_text"].total
    assert not torch.allclose(own, alike, atol=1e-3)
    without = SigmoidContrastiveSpec().build().losses(made, batch._replace(text=None))["image_text"].total
    assert torch.equal(without, own)


def test_the_head_names_the_temperature_and_the_bias() -> None:
    made, batch = outputs("image", "text", other=1.0), tiny_batch(TEXTS)
    found = SigmoidContrastiveSpec(head="other", same_caption_positive=False).build().losses(made, batch)
    assert torch.allclose(found["image_text"].total, expected(made, "image", "text", None, "other"), atol=1e-5)


def test_chunks_change_nothing() -> None:
    made, batch = outputs("image", "text"), tiny_batch(TEXTS)
    whole = SigmoidContrastiveSpec().build().losses(made, batch)["image_text"].total
    cut = SigmoidContrastiveSpec(chunk=4).build().losses(made, batch)["image_text"].total
    assert torch.allclose(cut, whole, atol=1e-5)


def test_a_head_without_a_bias_is_refused() -> None:
    parts = Parts({"image": 4, "text": 4}, {"contrastive": ContrastiveHeadSpec()}, {}, ())
    with pytest.raises(InputError, match=r"'contrastive', which has no bias: set .* a ContrastiveSpec"):
        SigmoidContrastiveSpec().check(parts)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_no_gradient(parts: int) -> None:
    """Those of the head's temperature and bias too, which belong to no sample."""
    objective: dict[str, ObjectiveSpec] = {"sigmoid": SigmoidContrastiveSpec(chunk=3, weight=0.5)}
    batch = tiny_batch([*TEXTS, "", "a small blue square, on the left"])

    def gradients(number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = dataclasses.replace(tiny_model(), heads={"contrastive": HEAD}).build()
        model.initialise(1)
        built: dict[str, Any] = {name: spec.build() for name, spec in objective.items()}
        told = accumulate(model, built, {"sigmoid": 0.5}, batch, number, lambda loss: loss.backward())
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, told

    (whole, told), (cut, told_cut) = gradients(1), gradients(parts)
    assert {"heads.contrastive.log_scale", "heads.contrastive.bias"} <= whole.keys()
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert (cut[name] - value).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), name
    assert torch.allclose(told["loss"], told_cut["loss"], rtol=1e-6)
    assert torch.allclose(told["loss"], 0.5 * told["sigmoid/image_text"])


def test_every_field_has_a_test() -> None:
    names = {field.name for field in dataclasses.fields(SigmoidContrastiveSpec)}
    assert names == {"weight", "pairs", "head", "same_caption_positive", "chunk"}
