"""The quality of named runs on public sets, over seeds.

    python -m benchmarks.numbers fsdd_ast [--data DIR] [--seeds 0 1 2] [--reuse]

Trains the runs that a number is of, once a seed, one process each, and writes ``benchmarks/results/NAME.md``. Sets
that are not in ``runs/data`` are made from DIR/NAME, where they are as they were published (``benchmarks.prepare``); a
number whose sets are nowhere is skipped, with a word.
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
from benchmarks.prepare import SETS
from mmformer.data.decode import decode_json
from mmformer.data.opening import open_samples

RESULTS = Path("benchmarks/results")
DATA = Path("runs/data")


def tested(*names: str) -> Callable[[Path], dict[str, float]]:
    """Some of the scores that ``mmformer test`` tells."""

    def measure(output: Path) -> dict[str, float]:
        told = told_by("test", "--output", str(output))
        return {name: told[name]["value"] for name in names}

    return measure


def told_by(*words: str) -> dict[str, dict[str, float]]:
    """The scores that a command of mmformer tells."""
    command = [sys.executable, "-m", "mmformer", *words, "--json"]
    told: dict[str, dict[str, float]] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return told


def drawings_and_titles(output: Path) -> dict[str, float]:
    """Retrieval among all drawings of the test split, and among those whose titles the filters would keep."""
    scores = {}
    for split, source in (("all of the test split", "openclipart"), ("filtered test split", "openclipart_clean_test")):
        words = ("--data", str(DATA / source), "--data.text", "json:caption")
        told = told_by("evaluate", str(output / "bundle"), *words)
        for way in ("image_to_text", "text_to_image"):
            for recall in ("R@1", "R@10"):
                scores[f"{way} {recall}, {split}"] = told[f"retrieval/{way}/{recall}"]["value"]
    return scores


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
        sets: of ``benchmarks.prepare`` that it reads.
        measure: from the run's folder to scores, of a hundred.
        options: of ``mmformer fit``.
        goal: what is hoped for, of every score.
        what: about the goal.
    """

    config: str
    sets: tuple[str, ...]
    measure: Callable[[Path], dict[str, float]]
    options: Mapping[str, str] = field(default_factory=dict)
    goal: float | None = None
    what: str = ""


NUMBERS: dict[str, list[Number]] = {
    "fsdd_ast": [
        Number("fsdd_ast", ("fsdd",), tested("digit/accuracy"), goal=98.5),
        Number(
            "fsdd_ast", ("fsdd",), tested("digit/accuracy"), {"data.source": "runs/data/fsdd_theo"}, 80, "theo unheard"
        ),
    ],
    "digits_trimodal": [Number("digits_trimodal", ("mnist_20k", "fsdd"), pictures_and_sounds, goal=95)],
    "fashion_mnist_vit": [Number("fashion_mnist_vit", ("fashion_mnist",), tested("class/accuracy"), goal=92.5)],
    "fashion_mnist_long": [Number("fashion_mnist_long", ("fashion_mnist",), tested("class/accuracy"), goal=94)],
    "easy_vqa": [Number("easy_vqa", ("easy_vqa",), tested("answer/exact_match"), goal=95)],
    "openclipart": [
        Number("openclipart", ("openclipart",), drawings_and_titles),
        Number("openclipart", ("openclipart",), drawings_and_titles, {"data.source": "runs/data/openclipart_filtered"}),
    ],
    "multi30k_en_de": [Number("multi30k_en_de", ("multi30k",), tested("translation/BLEU"), goal=30)],
}

FILTERS = ("--text", "json:caption", "--repeats", "5", "--letters", "0.6", "--language", "en")
CURATED: dict[str, tuple[tuple[str, ...], ...]] = {
    "openclipart": (
        ("duplicates", "openclipart", "openclipart_distinct", "--by", "image"),
        ("captions", "openclipart_distinct", "openclipart_filtered", *FILTERS),
        ("captions", "openclipart", "openclipart_clean_test", "--split", "test", *FILTERS),
    ),
}
"""What ``mmformer curate`` makes of a set: the filter, from where to where, and its options."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*NUMBERS, "all"])
    parser.add_argument("--data", type=Path, metavar="DIR", help="with a folder of each set as it was published")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reuse", action="store_true", help="measure runs that are there, instead of training again")
    arguments = parser.parse_args()
    for name in NUMBERS if arguments.name == "all" else [arguments.name]:
        absent = [each for number in NUMBERS[name] for each in number.sets if not made(each, arguments.data)]
        if absent:
            where = "--data was not given" if arguments.data is None else f"{arguments.data} has no such folder"
            print(f"{name} is skipped: {absent[0]} is not in {DATA}, and {where}.")
            continue
        measure(name, arguments.seeds, arguments.reuse)
    return 0


def made(name: str, folder: Path | None) -> bool:
    """Whether a set is in ``runs/data``, after it was made there where that was possible."""
    if not (DATA / name / "manifest.json").exists():
        if folder is None or not (folder / name).is_dir():
            return False
        SETS[name](folder / name)
    for kind, source, target, *options in CURATED.get(name, ()):
        if not (DATA / target / "manifest.json").exists():
            words = [kind, str(DATA / source), str(DATA / target), *options]
            subprocess.run([sys.executable, "-m", "mmformer", "curate", *words], check=True)
    return True


def measure(name: str, seeds: list[int], reuse: bool) -> None:
    """Train and measure all that a number is of, and write its table."""
    lines = [f"# {name}", "", describe(), ""]
    columns = " | ".join(f"seed {seed}" for seed in seeds)
    lines += [f"| score | goal | mean | {columns} |", "|---" * (3 + len(seeds)) + "|"]
    commands = []
    for place, number in enumerate(NUMBERS[name]):
        runs = [run(number, place, seed, reuse) for seed in seeds]
        said = " ".join(f"--{key} {value}" for key, value in number.options.items())
        commands.append(f"`mmformer fit --config configs/runs/{number.config}.yaml {said}`".replace(" `", "`"))
        for score in runs[0]:
            values = [scores[score] for scores in runs]
            has_goal = number.goal is not None and score != SECONDS
            goal = ", ".join(filter(None, (f"{number.goal:g}", number.what))) if has_goal else ""
            shown = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {score} {said} | {goal} | **{statistics.fmean(values):.1f}** | {shown} |")
    words = f"python -m benchmarks.numbers {name} --seeds {' '.join(map(str, seeds))}"
    lines += ["", f"`{words}` runs {', '.join(commands)}.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


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
