"""Norms of gradients: those of all numbers at once, in however many parts they come; clipping by them is PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmformer.parallel.clipping import ROW, clip_gradients, total_norm


def table() -> Tensor:
    """As of a vocabulary: a few rows have a large gradient, and all have a small one."""
    generator = torch.Generator().manual_seed(0)
    gradient = 1e-4 * torch.randn(16_000, 16, generator=generator)
    gradient[:40] = 0.05 * torch.randn(40, 16, generator=generator)
    return gradient


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_have_the_norm_of_the_whole(parts: int) -> None:
    gradient = table()
    exact = float(gradient.double().norm())
    assert abs(float(torch.linalg.vector_norm(gradient)) / exact - 1) > 1e-5, "which PyTorch's is not"
    assert float(total_norm(gradient.chunk(parts))) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (ROW,), (ROW + 1,), (2, ROW), (5, 7, 130)])
def test_every_number_counts(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert float(total_norm([gradient, torch.ones(4)])) == pytest.approx(float(gradient.square().sum() + 4) ** 0.5)


def test_what_is_no_number_is_none() -> None:
    assert total_norm([torch.ones(3), torch.full((2 * ROW,), torch.inf)]).isinf()
    assert total_norm([torch.ones(3), torch.full((2,), torch.nan)]).isnan()
    assert float(total_norm([])) == 0


@pytest.mark.parametrize("limit", [None, 0.5, 100.0])
def test_clipping_is_pytorchs(limit: float | None) -> None:
    found, expected = (nn.ParameterList(torch.zeros(n) for n in (3, 5, 2 * ROW)) for _ in range(2))
    for one, other in zip(found, expected, strict=True):
        one.grad = torch.linspace(-1, 1, len(one))
        other.grad = one.grad.clone()
    unused = nn.Parameter(torch.ones(2))
    norm = clip_gradients([*found, unused], limit)
    before = nn.utils.clip_grad_norm_(expected, torch.inf if limit is None else limit)
    torch.testing.assert_close(norm, before)
    assert unused.grad is None
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
