"""Attention on a CPU in bfloat16: PyTorch's fused kernel against plain matrix products, forward and backward.

    python -m benchmarks.attention

Equal results first; then the two in the order A B B A, nine times, in one process; medians and their ratio with its
spread. Writes ``benchmarks/results/attention.md``. It is why ``mmformer/nn/kernel.py`` chooses as it does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe
from mmformer.nn.kernel import attend

SHAPES = ((192, 4, 8, 32), (192, 4, 16, 32), (192, 4, 64, 32), (64, 8, 197, 64), (8, 12, 1024, 64))
RESULT = Path("benchmarks/results/attention.md")


def main() -> None:
    lines = [
        "# Attention in bfloat16 on a CPU, forward and backward",
        "",
        f"`python -m benchmarks.attention`. {describe()}; {torch.get_num_threads()} threads.",
        "",
        "| batch, heads, length, head width | fused, ms | plain, ms | fused / plain (least to most) |",
        "|---|---|---|---|",
    ]
    for shape in SHAPES:
        inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        torch.testing.assert_close(_fused(*inputs), _plain(*inputs), atol=2e-2, rtol=2e-2)
        fused, plain = compare(_training(_fused, inputs), _training(_plain, inputs))
        ratios = sorted(a / b for a, b in zip(fused, plain, strict=True))
        middle = statistics.median(ratios)
        lines.append(
            f"| {', '.join(map(str, shape))} | {statistics.median(fused):.1f} | {statistics.median(plain):.1f} "
            f"| **{middle:.1f}** ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
        )
    text = "\n".join(lines) + "\n"
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def compare(a: Callable[[], object], b: Callable[[], object], repeats: int = 9) -> tuple[list[float], list[float]]:
    """Milliseconds of two calls, in the order A B B A."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (a, b):
        call()
    for _ in range(repeats):
        for which in (0, 1, 1, 0):
            began = time.perf_counter()
            (a, b)[which]()
            times[which].append((time.perf_counter() - began) * 1e3)
    return times


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value, None, False, 0.0)


def _training(kernel: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(kernel(*inputs).float().sum(), inputs)


if __name__ == "__main__":
    main()
