"""Named systems against the libraries that they come from: forward passes, one process, one machine, one run.

    python -m benchmarks.systems [--only gpt2 clip …]

Each reference is saved, imported, and its outputs are compared with ours first; then both run in evaluation on 2
threads, float32, in the order A B B A, 25 times, or fewer where that takes long: medians, and the median of the ratios
of neighbours with the least and the most of them. Writes ``benchmarks/results/systems.md``.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attention import compare
from benchmarks.growth import THREADS
from benchmarks.machine import describe
from benchmarks.systems.case import CASES
from benchmarks.systems.imported import imported

RESULT = Path("benchmarks/results/systems.md")
BOUND = 1.05
MOST, LEAST, SECONDS = 25, 5, 20.0
"""How often a case is repeated: so often that it takes about so many seconds."""


def row(name: str) -> str:
    """A line of the table: outputs are compared before anything is timed."""
    torch.manual_seed(0)
    case = CASES[name]()
    reference, model = imported(case.reference)
    with torch.inference_mode():
        began = time.perf_counter()
        error = difference(case.ours(model), case.theirs(reference))
        taken = 2 * (time.perf_counter() - began)  # of a repeat
        if error > 1e-4:
            raise SystemExit(f"{name}: outputs differ by {error:.1e} of the largest, and are not timed.")
        repeats = max(LEAST, min(MOST, int(SECONDS / taken)))
        mine, other = compare(lambda: case.ours(model), lambda: case.theirs(reference), repeats)
    ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
    ratio = statistics.median(ratios)
    return (
        f"| {name} | {case.reference.library} | {case.shape} | {statistics.median(mine):.0f} "
        f"| {statistics.median(other):.0f} | **{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
        f"| {'yes' if ratio <= BOUND else 'no'} | {error:.0e} |"
    )


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """How much outputs differ, over the largest of theirs: the most of all."""
    errors = []
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape, (mine.shape, other.shape)
        errors.append(float((mine - other).abs().max() / other.abs().max()))
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # open_clip's, of weights that are random
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("transformers", "timm", "open_clip_torch"))
    lines = [
        "# Named systems against their libraries",
        "",
        f"`python -m benchmarks.systems`. {describe()}, {libraries}; {THREADS} threads, float32, four layers of the "
        f"published width unless said otherwise in the code.",
        "",
        f"| system | library | input | ours, ms | theirs, ms | ratio (least to most) | ≤ {BOUND} | outputs differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in args.only:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if args.only == list(CASES):
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
