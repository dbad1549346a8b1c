"""Where the milliseconds of a quickstart update go.

    python -m benchmarks.step [--config FILE] [--steps 60] [--precision bf16-mixed 32-true]

Writes ``benchmarks/results/step.md``: medians over the steps, after a warm-up in which all samples were decoded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.machine import describe
from mmformer.cli.options import merged
from mmformer.config import parse
from mmformer.data.loading import training_loader
from mmformer.training.accumulate import accumulate
from mmformer.training.run import RunSpec

RESULT = Path("benchmarks/results/step.md")
PHASES = ("data: read, augment, tokenize", "forward and losses", "backward", "clip and AdamW", "all of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/runs/emoji_quickstart.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed", "32-true"])
    arguments = parser.parse_args()
    runs = []
    for precision in arguments.precision:
        settings = [("config", arguments.config), ("trainer.precision", precision)]
        runs.append(parse(RunSpec, merged(RunSpec, settings), arguments.config))
    lines = [
        "# Where the milliseconds of an update go",
        "",
        f"`python -m benchmarks.step --config {arguments.config} --steps {arguments.steps}`. {describe()}; "
        f"{torch.get_num_threads()} threads; {runs[0].data.batch_size} samples an update.",
        "",
        "| precision | phase | median, ms | least | most |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        for phase, values in zip(PHASES, zip(*measure(run, arguments.steps), strict=True), strict=True):
            figures = f"**{statistics.median(values):.1f}** | {min(values):.1f} | {max(values):.1f}"
            lines.append(f"| {run.trainer.precision} | {phase} | {figures} |")
    text = "\n".join(lines) + "\n"
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def measure(run: RunSpec, steps: int) -> list[tuple[float, ...]]:
    """Milliseconds of each phase, a row for each update."""
    model = run.model.build()
    model.initialise(run.seed)
    optimizer = run.optimizer.build(model)
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    weights = {name: spec.weight for name, spec in run.objectives.items()}
    warm = 12
    batches = iter(training_loader(run.data, run.model.text_encoders(), run.seed, 0, warm + steps))
    rows = []
    for step in range(warm + steps):
        marks = [time.perf_counter()]
        batch = next(batches)
        marks.append(time.perf_counter())

        def backward(loss: torch.Tensor, marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())
            loss.backward()  # type: ignore[no-untyped-call]

        with torch.autocast("cpu", torch.bfloat16, enabled=run.trainer.precision == "bf16-mixed"):
            accumulate(model, objectives, weights, batch, 1, backward)
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.trainer.gradient_clip_val or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        spans = [(after - before) * 1e3 for before, after in pairwise(marks)]
        if step >= warm:
            rows.append((*spans, sum(spans)))
    return rows


if __name__ == "__main__":
    main()
