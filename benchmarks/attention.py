"""Attention on a CPU in bfloat16: PyTorch's fused kernel against plain matrix products, forward and backward, and of
one query, as each id that is written has one.

    python -m benchmarks.attention

Equal results first; then the two in the order A B B A, nine times, in one process; medians and their ratio with its
spread. Writes ``benchmarks/results/attention/PROCESSOR.md``. It is why ``mmformer/nn/kernel.py`` chooses as it does.
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

from benchmarks.machine import describe, kind
from mmformer.nn.kernel import _of_one, attend
from mmformer.nn.mask import hiding

SHAPES = ((192, 4, 8, 32), (192, 4, 16, 32), (192, 4, 64, 32), (64, 8, 197, 64), (8, 12, 1024, 64))
WRITING = ((1, 8, 130), (2, 8, 130), (4, 8, 130), (16, 8, 130), (1, 16, 2048), (32, 8, 256), (8, 12, 197), (48, 12, 20))
RESULTS = Path("benchmarks/results/attention")

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
        torch.testing.assert_close(_fused(*inputs), _plain(*inputs), atol=2e-2, rtol=2e-2)
        lines.append(line(", ".join(map(str, shape)), _training(_fused, inputs), _training(_plain, inputs)))
    lines += ["", "Of one query, in inference mode, without a mask and with one that is lowered:", "", *lines[4:6]]
    with torch.inference_mode():
        for rows, heads, keys in WRITING:
            query, key, value = (torch.randn(rows, heads, n, 64, dtype=torch.bfloat16) for n in (1, keys, keys))
            seen = torch.arange(keys) < torch.randint(1, keys + 1, (rows, 1, 1, 1))
            for name, plain, bias in (("", None, None), (", masked", seen, hiding(seen, torch.bfloat16))):
                fused = partial(_fused, query, key, value, bias)
                ours = partial(_of_one, query, key, value, plain, 0.0, None)
                lines.append(line(f"{rows}, {heads}, {keys}, 64{name}", _alone(fused), _alone(ours)))
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{kind()}.md").write_text(text, encoding="utf-8")
    print(text)


def line(name: str, fused: Callable[[], Results], plain: Callable[[], Results]) -> str:
    """Of the table, where the two make the same."""
    for one, other in zip(fused(), plain(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
    times = compare(fused, plain)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    return (
        f"| {name} | {' | '.join(f'{statistics.median(each):.2f}' for each in times)} "
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


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value, None, False, 0.0)


def _alone(call: Callable[[], Tensor]) -> Callable[[], Results]:
    return lambda: [call()]


def _training(kernel: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Results]:
    return lambda: torch.autograd.grad(kernel(*inputs).float().sum(), inputs)


if __name__ == "__main__":
    main()
