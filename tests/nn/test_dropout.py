"""Dropout: the share that is dropped, the mean and the gradient of the rest, and the stream that is drawn from."""

from __future__ import annotations

import pytest
import torch

from mmformer.nn.dropout import Dropout, drop


@pytest.mark.parametrize("p", [0.0005, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 1003, dtype=dtype)
    y = drop(x, p)
    assert y.dtype == dtype
    assert y.unique().tolist() == [0.0, float(torch.tensor(1 / (1 - p), dtype=dtype))]
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert float((y == 0).double().mean()) == pytest.approx(p, abs=5 * deviation + 2**-17)


def test_neighbours_are_dropped_independently() -> None:
    """Four numbers have one draw between them: none of its parts may tell of another."""
    torch.manual_seed(0)
    kept = (drop(torch.ones(2**20), 0.5) > 0).double().view(-1, 4) - 0.5
    moments = kept.T @ kept / len(kept)  # 4 4
    assert torch.allclose(moments, 0.25 * torch.eye(4, dtype=torch.float64), atol=5 * 0.25 / len(kept) ** 0.5)


def test_the_gradient_is_that_of_what_was_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, requires_grad=True)
    y = drop(x, 0.4)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(y, x * x.grad)
    assert x.grad.unique().tolist() == pytest.approx([0.0, 1 / 0.6])


def test_it_is_a_function_of_the_global_seed() -> None:
    module = Dropout(0.5)
    x = torch.ones(3, 5)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0), (1e-9, 1.0)])
def test_the_ends_are_exact(p: float, expected: float) -> None:
    torch.manual_seed(0)
    assert torch.equal(Dropout(p)(torch.ones(64, 64)), torch.full((64, 64), expected))


def test_evaluation_changes_nothing_and_draws_nothing() -> None:
    module = Dropout(0.5).eval()
    x = torch.randn(4, 4)
    state = torch.get_rng_state()
    assert torch.equal(module(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_laid_out_otherwise_keeps_its_meaning() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 13).view(3, 4).T  # not contiguous
    y = drop(x, 0.5)
    assert all(
        value in (0.0, 2 * known) for value, known in zip(y.flatten().tolist(), x.flatten().tolist(), strict=True)
    )
