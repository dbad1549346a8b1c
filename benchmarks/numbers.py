"""The quality of named runs on public sets (made by ``benchmarks.prepare``), over seeds.

    python -m benchmarks.numbers fsdd_ast [--seeds 0 1 2] [--reuse]

Trains the runs that a number is of, once a seed, one process each, and writes ``benchmarks/results/NAME.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import mmformer
from benchmarks.machine import describe
from mmformer.data.decode import decode_json
from mmformer.data.opening import open_samples

RESULTS = Path("benchmarks/results")
DATA = Path("runs/data")


def tested(*names: str) -> Callable[[Path], dict[str, float]]:
    """Some of the scores that ``mmformer test`` tells."""

    def measure(output: Path) -> dict[str, float]:
        command = [sys.executable, "-m", "mmformer", "test", "--output", str(output), "--json"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return {name: told[name]["value"] for name in names}

    return measure


def pictures_and_sounds(output: Path) -> dict[str, float]:
    """Written digits look for spoken ones, and the reverse: how often the nearest is of the same digit."""
    model = mmformer.load(output / "bundle")
    found = []
    for name, member in (("mnist_20k", "png"), ("fsdd", "wav")):
        samples = open_samples(str(DATA / name), "test")
        raws = [samples[place] for place in range(len(samples))]
        values = [raw.members[member] for raw in raws]
        embedded = model.embed(image=values) if member == "png" else model.embed(audio=values)
        digits = np.array([decode_json(raw.members["json"], raw.key)["digit"] for raw in raws])
        found.append((embedded.numpy(), digits))
    (images, written), (sounds, spoken) = found
    similarity = images @ sounds.T  # embeddings are of unit length
    return {
        "image → sound, nearest of the same digit": 100 * float((spoken[similarity.argmax(1)] == written).mean()),
        "sound → image, nearest of the same digit": 100 * float((written[similarity.argmax(0)] == spoken).mean()),
    }


@dataclass(frozen=True)
class Number:
    """One number.

    Attributes:
        config: the run that it is of.
        measure: from the run's folder to scores, in percent.
        options: of ``mmformer fit``.
        goal: what is hoped for.
    """

    config: str
    measure: Callable[[Path], dict[str, float]]
    options: Mapping[str, str] = field(default_factory=dict)
    goal: str = ""


_FOUND = ("retrieval/image_to_text/R@1", "retrieval/image_to_text/R@10", "retrieval/text_to_image/R@1")

NUMBERS: dict[str, list[Number]] = {
    "fsdd_ast": [
        Number("fsdd_ast", tested("digit/accuracy"), goal="98.5"),
        Number("fsdd_ast", tested("digit/accuracy"), {"data.source": "runs/data/fsdd_theo"}, "80, theo unheard"),
    ],
    "digits_trimodal": [Number("digits_trimodal", pictures_and_sounds, goal="95")],
    "fashion_mnist_vit": [Number("fashion_mnist_vit", tested("class/accuracy"), goal="92.5")],
    "easy_vqa": [Number("easy_vqa", tested("answer/exact_match"), goal="95")],
    "openclipart": [
        Number("openclipart", tested(*_FOUND)),
        Number("openclipart", tested(*_FOUND), {"data.source": "runs/data/openclipart_filtered"}),
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(NUMBERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reuse", action="store_true", help="measure runs that are there, instead of training again")
    arguments = parser.parse_args()
    lines = [f"# {arguments.name}", "", describe(), ""]
    columns = " | ".join(f"seed {seed}" for seed in arguments.seeds)
    lines += [f"| score | goal | mean | {columns} |", "|---" * (3 + len(arguments.seeds)) + "|"]
    commands = []
    for place, number in enumerate(NUMBERS[arguments.name]):
        runs = [run(number, place, seed, arguments.reuse) for seed in arguments.seeds]
        said = " ".join(f"--{key} {value}" for key, value in number.options.items())
        commands.append(f"`mmformer fit --config configs/runs/{number.config}.yaml {said}`".replace(" `", "`"))
        for score in runs[0]:
            values = [scores[score] for scores in runs]
            goal = number.goal if score != SECONDS else ""
            shown = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {score} {said} | {goal} | **{statistics.fmean(values):.1f}** | {shown} |")
    seeds = " ".join(map(str, arguments.seeds))
    lines += ["", f"`python -m benchmarks.numbers {arguments.name} --seeds {seeds}` runs {', '.join(commands)}.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{arguments.name}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    return 0


SECONDS = "seconds, all of the run"


def run(number: Number, place: int, seed: int, reuse: bool) -> dict[str, float]:
    """Train with a seed and measure."""
    output = Path("runs") / f"number_{number.config}_{place}_{seed}"
    seconds = output / "seconds.txt"
    if not (reuse and seconds.exists()):
        command = [sys.executable, "-m", "mmformer", "fit", "--config", f"configs/runs/{number.config}.yaml"]
        command += ["--output", str(output), "--overwrite", "--seed", str(seed)]
        for key, value in number.options.items():
            command += [f"--{key}", value]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
    return number.measure(output) | {SECONDS: float(seconds.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    raise SystemExit(main())
