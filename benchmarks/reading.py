"""Specs from plain data: mmformer's own reading beside jsonargparse's, of all files under configs/, in one run.

    python -m benchmarks.reading

The specs are compared first; then both read each file in turn, three times. What is told is the median of the seconds
that all files take. Writes ``benchmarks/results/reading.md``.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from mmformer import config
from mmformer.cli.options import merged
from mmformer.models.model import ModelSpec
from mmformer.nn.stack import StackSpec
from mmformer.plain import straight
from mmformer.training.run import RunSpec

RESULT = Path("benchmarks/results/reading.md")
REPEATS = 3


def by_jsonargparse(spec: type, data: dict[str, Any]) -> Any:
    parser = config.make_parser(spec)
    return config.build(parser, parser.parse_object(copy.deepcopy(config._whole(spec, data))), spec)


def main() -> None:
    kinds: dict[str, tuple[type, Callable[[Path], dict[str, Any]]]] = {
        "runs": (RunSpec, lambda file: merged(RunSpec, [("config", str(file))])),
        "models": (ModelSpec, config.read_yaml),
        "stacks": (StackSpec, config.read_yaml),
    }
    lines = []
    for kind, (spec, read) in kinds.items():
        given = [read(file) for file in sorted(Path("configs", kind).glob("*.yaml"))]
        for data in given:
            assert repr(straight(spec, data)) == repr(by_jsonargparse(spec, data)), "the same specs"
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(REPEATS):
            for make, times in ((straight, ours), (by_jsonargparse, theirs)):
                began = time.perf_counter()
                for data in given:
                    make(spec, data)
                times.append(time.perf_counter() - began)
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        lines.append(
            f"| {kind} | {len(given)} | {1000 * statistics.median(ours) / len(given):.1f} "
            f"| {1000 * statistics.median(theirs) / len(given):.1f} "
            f"| **{statistics.median(ratios):.0f}** ({ratios[0]:.0f} to {ratios[-1]:.0f}) |"
        )
    head = f"# Reading configurations\n\n`python -m benchmarks.reading`. {describe()}, "
    head += f"jsonargparse {version('jsonargparse')}. Plain data to specs, which are equal; files are read before.\n\n"
    head += "| files | number | ours, ms each | jsonargparse, ms each | times as fast (least to most) |\n"
    text = f"{head}|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
