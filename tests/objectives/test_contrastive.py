"""The softmax loss against plain autograd, in value and gradient, whatever its chunks; and the objective over it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import tiny_batch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.head import ContrastiveHeadSpec
from mmformer.objectives.contrastive import ContrastiveSpec, _ContrastiveLoss, contrastive_loss
from mmformer.spec import Parts
from mmformer.types import Outputs

SAME = torch.tensor([5, 3, 5, 1, 3, 5, 9])


def inputs(number: int = 7, width: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(number, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return x.requires_grad_(), y.requires_grad_(), torch.tensor([8.0], dtype=dtype, requires_grad=True)


def reference(x: Tensor, y: Tensor, scale: Tensor, same: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of rows and of columns, by autograd."""
    target = torch.eye(len(x), dtype=x.dtype)
    if same is not None:
        target = (same[:, None] == same[None, :]).to(x.dtype)
        target = target / target.sum(1, keepdim=True)
    logits = scale * x @ y.T
    rows, columns = (
        F.cross_entropy(value, target, reduction="sum", label_smoothing=smoothing) for value in (logits, logits.T)
    )
    return (rows + columns) / 2


@pytest.mark.parametrize(
    "same", [None, SAME, torch.zeros(7, dtype=torch.int64)], ids=["own", "some alike", "all alike"]
)
@pytest.mark.parametrize(("chunk", "smoothing"), [(1, 0.0), (2, 0.0), (3, 0.0), (3, 0.2), (7, 0.2), (100, 0.0)])
def test_value_and_gradients_are_autograds(same: Tensor | None, chunk: int, smoothing: float) -> None:
    ours, plain = inputs(), inputs()
    loss, expected = contrastive_loss(*ours, same, chunk, smoothing), reference(*plain, same, smoothing)
    assert torch.allclose(loss, expected, atol=1e-5, rtol=1e-6)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("same", [None, SAME], ids=["own", "some alike"])
@pytest.mark.parametrize("chunk", [3, 7])
def test_gradients_pass_gradcheck_in_float64(same: Tensor | None, chunk: int) -> None:
    assert torch.autograd.gradcheck(
        lambda *args: _ContrastiveLoss.apply(*args, same, chunk, 0.1), inputs(dtype=torch.float64)
    )


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x, y, scale = inputs()
    (gradient,) = torch.autograd.grad(contrastive_loss(x, y, scale), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_it_is_computed_in_float32_under_autocast() -> None:
    x, y, scale = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(x, y, scale)
        half = contrastive_loss(x.bfloat16(), y.bfloat16(), scale)
    assert loss.dtype == half.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(x, y, scale))
    assert torch.allclose(half, loss, rtol=1e-2)


def test_large_scales_do_not_overflow() -> None:
    x, y, _ = inputs()
    loss = contrastive_loss(x, y, torch.tensor([1e4]))
    assert torch.isfinite(loss)
    assert contrastive_loss(x[:1], y[:1], torch.tensor([10.0])).abs() < 1e-6, "one sample picks out itself"
    assert contrastive_loss(x, x, torch.tensor([1e4])) < 1e-3


def test_memory_grows_with_the_chunk() -> None:
    """What is kept for the backward pass is N E, whatever N squared would be."""
    x, y, scale = inputs(300, 4)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        contrastive_loss(x, y, scale, None, 16)
    assert sum(kept) <= 2 * 300 * 4 + 2 * 300 + 1


# ------------------------------------------------------------------------------------------------- the objective


def outputs(*names: str, number: int = 6, width: int = 4, **scales: float) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    embedding = {name: 3 * torch.randn(number, width, generator=generator) for name in names}
    scale = {name: torch.tensor([value]) for name, value in ({"contrastive": 5.0} | scales).items()}
    return Outputs.empty()._replace(embedding=embedding, scale=scale)


TEXTS = ["red", "blue", "red", "green", "black", "blue"]


def expected(made: Outputs, a: str, b: str, same: Tensor | None, head: str = "contrastive") -> Tensor:
    x, y = (F.normalize(made.embedding[name], dim=-1) for name in (a, b))
    return reference(x, y, made.scale[head], same)


def test_embeddings_are_normalised_and_every_pair_has_its_loss() -> None:
    made, batch = outputs("image", "text", "audio"), tiny_batch(TEXTS)
    objective = ContrastiveSpec(pairs=(("image", "text"), ("audio", "text"))).build()
    losses = objective.losses(made, batch)
    same = torch.tensor([0, 1, 0, 2, 3, 1])
    assert list(losses) == ["image_text", "audio_text"]
    for (a, b), term in zip((("image", "text"), ("audio", "text")), losses.values(), strict=True):
        assert torch.allclose(term.total, expected(made, a, b, same), atol=1e-5)
        assert term.items == 6
    assert {name: float(n) for name, n in objective.items(batch).items()} == {"image_text": 6, "audio_text": 6}
    assert objective.couples_samples
    assert objective.prepare(batch, 0) is batch


def test_same_captions_are_positives_by_a_switch() -> None:
    made, batch = outputs("image", "text"), tiny_batch(TEXTS)
    own = ContrastiveSpec(same_caption_positive=False).build().losses(made, batch)["image_text"].total
    assert torch.allclose(own, expected(made, "image", "text", None), atol=1e-5)
    alike = ContrastiveSpec().build().losses(made, batch)["image_text"].total
    assert not torch.allclose(own, alike, atol=1e-3)
    different = tiny_batch([f"{index} {text}" for index, text in enumerate(TEXTS)])
    assert torch.allclose(ContrastiveSpec().build().losses(made, different)["image_text"].total, own, atol=1e-5)
    no_text = ContrastiveSpec(pairs=(("image", "audio"),)).build()
    made = outputs("image", "audio")
    assert torch.allclose(
        no_text.losses(made, batch._replace(text=None))["image_audio"].total,
        expected(made, "image", "audio", None),
        atol=1e-5,
    )


def test_the_head_names_the_temperature() -> None:
    made, batch = outputs("image", "text", other=1.0), tiny_batch(TEXTS)
    total = ContrastiveSpec(head="other", same_caption_positive=False).build().losses(made, batch)["image_text"].total
    assert torch.allclose(total, expected(made, "image", "text", None, "other"), atol=1e-5)


def test_chunks_change_nothing() -> None:
    made, batch = outputs("image", "text"), tiny_batch(TEXTS)
    whole = ContrastiveSpec().build().losses(made, batch)["image_text"].total
    assert torch.allclose(ContrastiveSpec(chunk=4).build().losses(made, batch)["image_text"].total, whole, atol=1e-5)


def test_smoothing_is_of_the_target() -> None:
    made, batch = outputs("image", "text"), tiny_batch(TEXTS)
    found = ContrastiveSpec(smoothing=0.3, same_caption_positive=False).build().losses(made, batch)["image_text"].total
    x, y = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    assert torch.allclose(found, reference(x, y, made.scale["contrastive"], None, 0.3), atol=1e-5)
    with pytest.raises(InputError, match=r"ContrastiveSpec\.smoothing must be at least 0 and below 1"):
        ContrastiveSpec(smoothing=1.0)


def test_a_head_with_a_bias_is_refused() -> None:
    """Added to every logit, it changes no softmax: a parameter that never learns."""
    parts = Parts({"image": 4, "text": 4}, {"contrastive": ContrastiveHeadSpec(bias=-10.0)}, {}, ())
    with pytest.raises(InputError, match=r"'contrastive', which has a bias, but .* take a SigmoidContrastiveSpec"):
        ContrastiveSpec().check(parts)


def test_every_field_has_a_test() -> None:
    """``weight`` acts in training (tests/training/test_accumulate.py); the rest is above."""
    names = {field.name for field in dataclasses.fields(ContrastiveSpec)}
    assert names == {"weight", "pairs", "head", "same_caption_positive", "chunk", "smoothing"}
