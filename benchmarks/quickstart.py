"""The quickstart's quality over seeds, on the unseen test emoji and, where it is at hand, on OpenMoji's drawings.

    python -m benchmarks.quickstart [--seeds 0 1 2]
    python -m benchmarks.quickstart --config configs/runs/emoji_full.yaml --seeds 0

Trains ``configs/runs/emoji_quickstart.yaml`` (or another run of the emoji) once a seed, one process each, and writes
``benchmarks/results/quickstart.md`` (or the other's name without ``emoji_``).
OpenMoji (CC BY-SA 4.0) is not part of this project: ``--openmoji DIR`` names a folder with its ``captions.jsonl`` and
``images_72.zip``; without it that part is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch
import yaml

import mmformer
from benchmarks.machine import describe
from mmformer.data.manifest import Manifest
from mmformer.data.shards import ShardReader
from mmformer.evaluation.captions import exact_match
from mmformer.evaluation.cider import cider
from mmformer.generation.beam import BeamSpec

CONFIG = Path("configs/runs/emoji_quickstart.yaml")
RESULTS = Path("benchmarks/results")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--openmoji", type=Path, help="the folder of OpenMoji's drawings and captions")
    parser.add_argument(
        "options", nargs="*", help="dotted overrides for fit, after --, such as -- --trainer.max_steps 50"
    )
    parser.add_argument("--reuse", action="store_true", help="measure runs that are there, instead of training again")
    arguments = parser.parse_args()
    config = arguments.config
    runs = [measure(config, seed, arguments.openmoji, arguments.options, arguments.reuse) for seed in arguments.seeds]
    text = report(config, arguments.seeds, runs, arguments.openmoji, arguments.options)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{config.stem.removeprefix('emoji_')}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measure(config: Path, seed: int, openmoji: Path | None, options: list[str], reuse: bool) -> dict[str, float]:
    """Train with a seed; the scores by name, and the seconds that the whole command took."""
    output = Path("runs") / f"benchmark_{config.stem}_{seed}"
    seconds = output / "seconds.txt"
    if reuse and seconds.exists():
        made = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
        command = [sys.executable, "-m", "mmformer", "fit", "--config", str(config), "--seed", str(seed), *options]
        asked = subprocess.run([*command, "--print_config"], check=True, capture_output=True, text=True).stdout
        if yaml.safe_load(asked) != made:
            raise SystemExit(f"{output} was made with other options than these: measure without --reuse.")
    else:
        command = [sys.executable, "-m", "mmformer", "fit", "--config", str(config), "--output", str(output)]
        began = time.perf_counter()
        subprocess.run([*command, "--overwrite", "--seed", str(seed), *options], check=True)
        seconds.write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
    scores = {"seconds, all of it": float(seconds.read_text(encoding="utf-8"))}
    command = [sys.executable, "-m", "mmformer", "test", "--output", str(output), "--json"]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    scores |= {name: score["value"] for name, score in measured.items()}
    if openmoji is not None:
        scores |= score_openmoji(output / "bundle", openmoji)
    return scores


def score_openmoji(bundle: Path, folder: Path) -> dict[str, float]:
    """The training concepts, drawn by other hands: found among the names of all of them, and written of."""
    reader = ShardReader(Manifest.load("data/emoji"), "train")
    names = {key: json.loads(reader[i].members["json"])["names"]["en"] for i, key in enumerate(reader.keys)}
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = {row["id"]: row["file"] for row in rows if row["id"] in names}
    with zipfile.ZipFile(folder / "images_72.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        pictures = [archive.read(members[file]) for file in drawn.values()]
    model = mmformer.load(bundle)
    ordered = [*drawn, *(key for key in names if key not in drawn)]  # name i belongs to drawing i
    image, text = model.embed(image=pictures), model.embed(text=[names[key] for key in ordered])
    score = image @ text.T
    rank = (~(score < score.diagonal()[:, None])).sum(1).double()
    label = f"openmoji ({len(drawn)} drawings, {len(names)} names)/image_to_text"
    scores = {
        f"{label}/R@1": (rank <= 1).double().mean().item() * 100,
        f"{label}/R@10": (rank <= 10).double().mean().item() * 100,
        f"{label}/median_rank": torch.quantile(rank, 0.5).item(),
    }
    if model.model.spec.decoders:
        captions = model.caption(image=pictures, spec=BeamSpec(beams=4))
        references = [[names[key]] for key in drawn]
        scores["openmoji/captions/exact match"] = 100 * exact_match(captions, references)
        scores["openmoji/captions/CIDEr"] = cider(captions, references)
    return scores


def report(
    config: Path, seeds: list[int], runs: list[dict[str, float]], openmoji: Path | None, options: list[str]
) -> str:
    """The table as Markdown."""
    lines = [
        f"# {config.stem} over seeds",
        "",
        f"`python -m benchmarks.quickstart --config {config} --seeds {' '.join(map(str, seeds))}"
        + (" --openmoji DIR" if openmoji else "")
        + (f" -- {' '.join(options)}`" if options else "`"),
        "",
        f"{describe()}. Scores in percent, ranks from 1, on the test split, which training never saw.",
        "",
        "| score | mean | " + " | ".join(f"seed {seed}" for seed in seeds) + " |",
        "|---" * (2 + len(seeds)) + "|",
    ]
    for name in runs[0]:
        values = [run[name] for run in runs]
        digits = 2 if name.endswith("CIDEr") else 1
        cells = " | ".join(f"{value:.{digits}f}" for value in values)
        lines.append(
            f"| {name.replace('_to_', ' → ').replace('/', ' ')} | **{statistics.mean(values):.{digits}f}** | {cells} |"
        )
    if openmoji is None:
        lines += ["", "OpenMoji was left out: `--openmoji` named no folder with its drawings."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
