"""Products with packed weights, and with weights as they are.

    python -m benchmarks.prepacking

Writes ``benchmarks/results/prepacking/PROCESSOR.md``: which order is the faster depends on who made it. Each shape has
so many weights that they do not stay in the caches.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.beside import THREADS, Work, compare
from benchmarks.machine import describe, kind
from mmformer.nn.prepacked import PackedLinear

RESULTS = Path("benchmarks/results/prepacking")
SHAPES = ((512, 512), (2048, 512), (512, 2048), (3072, 768), (768, 3072), (49408, 512))
ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
COUNTED = 64
"""Rows of the products that packing is counted in."""
ELEMENTS = 80_000_000
ROUNDS = 4


def line(dtype: torch.dtype, out: int, inner: int) -> str:
    """Of the table: how many times as fast packed weights are, how many products packing takes as long as, and how many
    rows gain as much as it takes.
    """
    number = max(1, ELEMENTS // (out * inner))
    weights = [torch.randn(out, inner).to(dtype) for _ in range(number)]
    bias = torch.randn(out).to(dtype)
    ratios, cost = [], 0.0
    for rows in ROWS:
        packing, mine, other = compared(weights, bias, rows, rows)
        ratios.append(statistics.median(b / a for a, b in zip(mine, other, strict=True)))
        if rows == COUNTED:
            cost = packing / statistics.median(other)
    # Who does not know how many rows are to come packs for the fewest (``nn/patient.py``).
    packing, mine, other = compared(weights, bias, ROWS[-1], 1)
    gained = statistics.median(b - a for a, b in zip(mine, other, strict=True))
    paid = ROWS[-1] * packing / max(gained, 1e-9)
    name = str(dtype).removeprefix("torch.")
    return (
        f"| {name} | {out} × {inner} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {cost:.1f} | {_rows(paid)} |"
    )


def compared(
    weights: list[torch.Tensor], bias: torch.Tensor, rows: int, packed_for: int
) -> tuple[float, list[float], list[float]]:
    """Seconds of packing all weights; and of so many rows by all of them, packed and as they are."""
    PackedLinear.of(weights[0], bias, packed_for)  # the first makes a kernel
    began = time.perf_counter()
    packed = [PackedLinear.of(weight, bias, packed_for) for weight in weights]
    packing = time.perf_counter() - began
    x = torch.randn(rows, weights[0].shape[1]).to(weights[0].dtype)

    def ours() -> None:
        for linear in packed:
            linear(x)

    def plain() -> None:
        for weight in weights:
            F.linear(x, weight, bias)

    return packing, *compare(Work(ours, plain, 0.0), ROUNDS)


def _rows(number: float) -> str:
    return f"{number:,.0f}" if number < 100_000 else "–"


def main() -> None:
    torch.set_num_threads(THREADS)
    lines = [
        "# Packed weights",
        "",
        f"`python -m benchmarks.prepacking`. {describe()}; {THREADS} threads. Times as fast as `F.linear`, by rows; "
        f"how many of its products of {COUNTED} rows packing takes as long as; and how many rows gain as much, "
        f"{ROWS[-1]:,} at a time, of weights packed for one row or more (–: none do).",
        "",
        f"| precision | weight | {' | '.join(f'{rows:,}' for rows in ROWS)} | packing | paid by |",
        f"|---|---|{'---|' * (len(ROWS) + 2)}",
    ]
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for shape in SHAPES:
                lines.append(line(dtype, *shape))
                print(lines[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{kind()}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
