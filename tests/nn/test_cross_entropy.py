"""The cross-entropy over a vocabulary is PyTorch's, value and gradients, without all of its logits at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mmformer.nn.cross_entropy import linear_cross_entropy

TOKENS, WIDTH, PIECES = 13, 6, 29
CHUNKS = [1, 4, 5, 13, 1000]
"""One token, sizes that do not divide, all, and more than there are."""


def made(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """x T D, weight V D, target T; sharp enough that the softmax is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(PIECES, WIDTH, generator=generator, dtype=torch.float64)
    target = torch.randint(0, PIECES, (tokens,), generator=generator)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def reference(x: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(x @ weight.T, target, reduction="sum", label_smoothing=smoothing)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_pytorchs(dtype: torch.dtype, tolerance: float, chunk: int) -> None:
    x, weight, target = made(dtype)
    found, expected = linear_cross_entropy(x, weight, target, chunk), reference(x, weight, target)
    assert found.dtype == dtype
    assert_close(found, expected, rtol=tolerance, atol=tolerance)
    # Of a mean with a weight, as objectives take it: what comes from above is no 1.
    actual, wanted = (torch.autograd.grad(0.3 * loss / TOKENS, (x, weight)) for loss in (found, expected))
    for one, other in zip(actual, wanted, strict=True):
        assert one.dtype == dtype
        assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_a_bias_is_pytorchs(chunk: int, smoothing: float) -> None:
    x, weight, target = made()
    bias = torch.linspace(-3, 3, PIECES, dtype=torch.float64, requires_grad=True)
    found = linear_cross_entropy(x, weight, target, chunk, smoothing, bias)
    expected = F.cross_entropy(x @ weight.T + bias, target, reduction="sum", label_smoothing=smoothing)
    assert_close(found, expected)
    wanted = torch.autograd.grad(0.3 * expected, (x, weight, bias))
    assert_close(torch.autograd.grad(0.3 * found, (x, weight, bias)), wanted)
    alone = linear_cross_entropy(x.detach(), weight.detach(), target, chunk, smoothing, bias)
    assert_close(torch.autograd.grad(0.3 * alone, bias), wanted[2:])


@pytest.mark.parametrize("chunk", [4, 1000])
def test_smoothing_is_pytorchs(chunk: int) -> None:
    x, weight, target = made()
    found, expected = linear_cross_entropy(x, weight, target, chunk, 0.1), reference(x, weight, target, 0.1)
    assert_close(found, expected)
    assert abs(found - linear_cross_entropy(x, weight, target, chunk)) > 0.1
    for one, other in zip(*(torch.autograd.grad(loss, (x, weight)) for loss in (found, expected)), strict=True):
        assert_close(one, other)


def test_the_gradient_is_that_of_small_steps() -> None:
    x, weight, target = made(tokens=4)
    assert torch.autograd.gradcheck(lambda x, weight: linear_cross_entropy(x, weight, target, 3), (x, weight))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_its_own(frozen: str) -> None:
    x, weight, target = made()
    wanted = dict(zip(("x", "weight"), torch.autograd.grad(reference(x, weight, target), (x, weight)), strict=True))
    given = {"x": x, "weight": weight}
    given[frozen].requires_grad_(False)
    with Operations() as operations:
        linear_cross_entropy(x, weight, target, 5).backward()
    assert given[frozen].grad is None
    (other,) = given.keys() - {frozen}
    assert_close(given[other].grad, wanted[other])
    products = operations.count["mm"] + operations.count["addmm_"]
    assert products == 2 * 3, "the logits, and one gradient, of each of three chunks"


@pytest.mark.parametrize("why", ["no_grad", "inference_mode", "frozen"])
def test_no_gradient_is_made_where_none_is_wanted(why: str) -> None:
    x, weight, target = made()
    expected = reference(x, weight, target).detach()
    if why == "frozen":
        x, weight = x.detach(), weight.detach()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "frozen": torch.enable_grad}[why]
    with context(), Operations() as operations:
        found = linear_cross_entropy(x, weight, target, 5)
    assert not found.requires_grad
    assert_close(found, expected)
    products = operations.count["mm"] + operations.count["matmul"]  # which is not taken apart in inference mode
    assert products == 3, "the logits of each of three chunks"


def test_no_tokens_are_no_loss() -> None:
    x, weight, target = made(tokens=0)
    loss = linear_cross_entropy(x, weight, target)
    loss.backward()
    assert loss == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_logits_far_from_zero_do_not_overflow() -> None:
    x, weight, target = made(torch.float32)
    far = (x.detach() * 1e4).requires_grad_()
    found, expected = linear_cross_entropy(far, weight, target, 5), reference(far, weight, target)
    assert found.isfinite()
    assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (far, weight)), torch.autograd.grad(expected, (far, weight)), strict=True
    ):
        assert_close(one, other)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_bfloat16_autocast_is_near(chunk: int) -> None:
    """The products are in bfloat16; softmax and sums are not, and gradients come back as wide as they are needed."""
    x, weight, target = made(torch.float32)
    expected = reference(x, weight, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(x, weight, target, chunk)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=5e-3, atol=0)
    actual, wanted = torch.autograd.grad(found, (x, weight)), torch.autograd.grad(expected, (x, weight))
    for one, other in zip(actual, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_bfloat16_sums_over_chunks_are_not_rounded() -> None:
    """4096 tokens, one a chunk: in bfloat16 a sum would stop growing where a term is below its last digit."""
    x = torch.ones(4096, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)
    total = linear_cross_entropy(x, weight, torch.zeros(4096, dtype=torch.int64), chunk=1)
    assert_close(total, torch.tensor(4096 * math.log(2)), rtol=1e-4, atol=0)
    total.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-2048.0] * 2, [2048.0] * 2]


# ------------------------------------------------------------------------------------------------- memory


class Operations(TorchDispatchMode):
    """Counts what is computed, and sees the largest tensor that any of it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count[func.overloadpacket.__name__] += 1
        made = result if isinstance(result, tuple) else (result,)
        self.largest = max([self.largest, *(part.numel() for part in made if isinstance(part, Tensor))])
        return result


def test_nothing_of_the_size_of_all_logits_is_made_or_kept() -> None:
    """60 tokens of width 4 over 50 pieces: 3,000 logits; 7 tokens' are 350, x is 240, the weight 200."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, requires_grad=True)
    weight = torch.randn(50, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 50, (60,), generator=generator)

    def watched(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[int, list[int]]:
        """The largest tensor that is made, forward and backward, and the sizes of those kept for backward."""
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with Operations() as operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(x, weight, target).backward()
        return operations.largest, sorted(kept)

    largest, kept = watched(reference)
    assert largest >= 3000, "the watch sees them where they are"
    assert max(kept) >= 3000
    assert watched(lambda x, w, t: linear_cross_entropy(x, w, t, 7)) == (350, [200, 240])
    assert watched(lambda x, w, t: linear_cross_entropy(x, w, t, 20)) == (1000, [200, 240])
