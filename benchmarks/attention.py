"""Attention on a CPU in bfloat16: PyTorch's fused kernel against plain matrix products, forward and backward, and of
one query, as each id that is written has one.

    python -m benchmarks.attention

Equal results first; then the two in the order A B B A, nine times, in one process; medians and their ratio with its
spread. Writes ``benchmarks/results/attention.md``. It is why ``mmformer/nn/kernel.py`` chooses as it does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe
from mmformer.nn.kernel import attend

SHAPES = ((192, 4, 8, 32), (192, 4, 16, 32), (192, 4, 64, 32), (64, 8, 197, 64), (8, 12, 1024, 64))
WRITING = ((1, 8, 130, 64), (16, 8, 130, 64), (32, 8, 256, 64), (8, 12, 197, 64), (48, 12, 20, 64))
RESULT = Path("benchmarks/results/attention.md")

Results: TypeAlias = Iterable[Tensor]


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
        lines.append(line(shape, _training(_fused, inputs), _training(_plain, inputs)))
    lines += ["", "Of one query, in inference mode:", "", *lines[4:6]]
    with torch.inference_mode():
        for rows, heads, keys, width in WRITING:
            query, key, value = (
                torch.randn(rows, heads, length, width, dtype=torch.bfloat16) for length in (1, keys, keys)
            )
            calls = (partial(route, query, key, value) for route in (_fused, _plain))
            lines.append(line((rows, heads, keys, width), *calls))
    text = "\n".join(lines) + "\n"
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def line(shape: tuple[int, ...], fused: Callable[[], Results], plain: Callable[[], Results]) -> str:
    """Of the table, where the two make the same."""
    for one, other in zip(fused(), plain(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
    times = compare(fused, plain)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    return (
        f"| {', '.join(map(str, shape))} | {' | '.join(f'{statistics.median(each):.2f}' for each in times)} "
        f"| **{statistics.median(ratios):.1f}** ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
    )


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


def _training(kernel: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Results]:
    return lambda: torch.autograd.grad(kernel(*inputs).float().sum(), inputs)


if __name__ == "__main__":
    main()
