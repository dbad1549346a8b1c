"""How the time and memory of an update grow with what a user may choose: batch, pictures, captions, depth, width …

    python -m benchmarks.update_growth [--only batch width …]

A CLIP of two towers (width 256, 4 layers, pictures of 128 px in patches of 16, captions of 16 ids, 32 of each an
update) whose sizes are changed one at a time; for classes, its image tower with a classifier. Forward, backward,
clipping and AdamW in float32 on 2 threads; each point is a process of its own: the median of its updates, and by how
much they raise its peak of resident memory, weights and optimizer among it. For shards it is what a process does before
its first update, and to find the samples of one: manifests without tars, of 1,000 samples a shard.

Exponents are fitted by least squares on logarithms; the second one is that of the two largest points alone, where
what does not grow weighs less. Writes ``benchmarks/results/update_growth.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.growth import KEPT, THREADS, Point, exponent
from benchmarks.machine import describe
from benchmarks.memory import peak, resident
from benchmarks.order import Rows, start
from mmformer.cli.options import merged
from mmformer.config import parse
from mmformer.data.manifest import Manifest
from mmformer.parallel.clipping import clip_gradients
from mmformer.training.run import RunSpec
from mmformer.training.stand_in import Lengths, stand_in
from mmformer.training.update import add_gradient

RESULT = Path("benchmarks/results/update_growth.md")
PATCH, LANES = 16, 64


class Sizes(NamedTuple):
    """Of a run."""

    batch: int = 32
    side: int = 128
    caption: int = 16
    depth: int = 4
    width: int = 256
    classes: int = 0  # 0: contrast of pictures and captions


class Axis(NamedTuple):
    """What is changed, and to what."""

    what: str
    unit: str
    values: tuple[int, ...]
    why: str


AXES = {
    "batch": Axis("samples of an update", "", (16, 32, 64, 128), "1; contrast adds N² logits, in chunks"),
    "side": Axis("side of the pictures", "px", (64, 128, 256, 512), "2: patches; 4 in attention between them"),
    "caption": Axis("ids of a caption", "", (16, 32, 64, 128, 256), "1 of the text tower; pictures stay"),
    "depth": Axis("layers of both towers", "", (2, 4, 8, 16), "1"),
    "width": Axis("width of both towers", "", (128, 256, 512, 1024), "2 in products and weights, 1 in activations"),
    "classes": Axis("classes of a classifier", "", (100, 1_000, 10_000, 100_000), "1 of the classifier alone"),
    "shards": Axis(
        "shards of a set",
        "",
        (100, 1_000, 10_000, 100_000),
        "1 up to 10,000, which are read whole; the table of more is mapped",
    ),
}
"""With the exponent of time that arithmetic would have it be."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help="measure one, in this process")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]))))
        return
    found = {name: {value: in_a_process(name, value) for value in AXES[name].values} for name in args.only}
    text = report(found)
    print(text)
    if args.only == list(AXES):
        RESULT.write_text(text, encoding="utf-8")


def in_a_process(name: str, value: int) -> Point:
    command = [sys.executable, "-m", "benchmarks.update_growth", "--point", name, str(value)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **KEPT}).stdout
    point = Point(*json.loads(told.splitlines()[-1]))
    print(f"{name:8} {value:7} {point.seconds:8.4f} s {point.mebibytes:8.1f} MiB", file=sys.stderr, flush=True)
    return point


def measure(name: str, value: int) -> Point:
    """One point of an axis, in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if name == "shards":
        return of_shards(value)
    once(update_of(Sizes(2, 32, 8, 1, 64)))  # what a library takes at its first call is none of the update's
    gc.collect()
    before = resident()
    update = update_of(Sizes()._replace(**({"classes": value} if name == "classes" else {name: value})))
    update()
    return Point(median_of(lambda: once(update)), (peak() - before) / 2**20)


def of_shards(number: int) -> Point:
    """What a process takes to open a set of shards, and to find the samples of an update in it."""
    batch = Sizes().batch
    with tempfile.TemporaryDirectory() as folder:
        for place, shards in (("few", LANES), ("many", number)):
            Path(folder, place).mkdir()
            Manifest(Path(folder, place), Rows(shards, 1_000, 0)).save()

        def opened(place: str) -> float:
            began = time.perf_counter()
            _, order, _, _ = start(Path(folder, place), 0, LANES)
            for position in range(batch):
                order.locate(position)
            return time.perf_counter() - began

        opened("few")
        gc.collect()
        before = resident()
        seconds = median_of(lambda: opened("many"))
        return Point(seconds, (resident() - before) / 2**20)


def once(call: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median_of(call: Callable[[], float]) -> float:
    """Of at least three calls, and a second's."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 2 and len(times) < 50):
        times.append(call())
    return statistics.median(times)


def update_of(sizes: Sizes) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW, of one batch."""
    settings = classifier(sizes) if sizes.classes else clip(sizes)
    run: RunSpec = parse(RunSpec, merged(RunSpec, list((COMMON | settings).items())), "sizes")
    model = run.model.build()
    model.initialise(run.seed)
    optimizer = run.optimizer.build(model.train())
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    (source,) = run.data.each()
    batch = stand_in(run, source, sizes.batch, Lengths(text=(sizes.caption,)), _noise)

    def update() -> None:
        optimizer.zero_grad()
        add_gradient(run, model, objectives, batch, lambda loss: loss.backward())  # type: ignore[no-untyped-call]
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()

    return update


def _noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=dtype)


COMMON = {"data.source": "nowhere", "optimizer.lr": "1e-4"}


def clip(sizes: Sizes) -> dict[str, str]:
    """A run of two towers."""
    text = {"rows": "8192", "ids": "{bos: 8190, eos: [8191]}", "context_length": str(sizes.caption)}
    return {
        "model": "configs/models/clip.yaml",
        **_tower("image", sizes, [sizes.side // PATCH] * 2),
        **_tower("text", sizes, [sizes.caption]),
        "model.encoders.image.tokenizer.init_args.patch": str(PATCH),
        **{f"model.encoders.text.tokenizer.init_args.{name}": value for name, value in text.items()},
        **{f"model.encoders.{name}.embedding": str(sizes.width) for name in ("image", "text")},
        "objectives": "{contrastive: {class_path: ContrastiveSpec}}",
        "data.image": f"{{transform: {{size: [{sizes.side}, {sizes.side}]}}}}",
        "data.text": "{caption: {class_path: FieldCaptionSpec}}",
    }


def classifier(sizes: Sizes) -> dict[str, str]:
    """A run of one tower with a classifier."""
    return {
        "model": "configs/models/vit.yaml",
        **_tower("image", sizes, [sizes.side // PATCH] * 2),
        "model.encoders.image.tokenizer.init_args.patch": str(PATCH),
        "model.encoders.image.embedding": str(sizes.width),
        "model.heads.classes.init_args.classes": str(sizes.classes),
        "objectives": "{classes: {class_path: ClassificationSpec, init_args: {head: classes}}}",
        "data.image": f"{{transform: {{size: [{sizes.side}, {sizes.side}]}}}}",
        "data.labels": "{classes: {classes: none.txt, member: cls}}",
    }


def _tower(name: str, sizes: Sizes, places: list[int]) -> dict[str, str]:
    layer = f"model.stacks.{name}.layer"
    return {
        f"model.stacks.{name}.width": str(sizes.width),
        f"model.stacks.{name}.depth": str(sizes.depth),
        f"{layer}.mixer.init_args.heads": str(max(1, sizes.width // 64)),
        f"{layer}.feedforward.init_args.hidden_width": str(4 * sizes.width),
        f"model.stacks.{name}.position.init_args.sizes": str(places),
    }


def report(found: dict[str, dict[int, Point]]) -> str:
    lines = [
        "# How an update grows",
        "",
        f"`python -m benchmarks.update_growth`; {THREADS} threads, float32, a process for each point. {describe()}.",
        "",
        "A CLIP of width 256 with 4 layers in each tower, pictures of 128 px in patches of 16, captions of 16 ids, "
        "32 samples an update; one size is changed at a time. Memory is all that the update needs, weights, gradients "
        "and AdamW's moments among it. Of shards it is what comes before the first update, and finding its samples.",
        "",
        "The exponent p of time ∝ sizeᵖ, and of memory, is fitted over all points, and, in brackets, over the two "
        "largest: parts that do not grow with a size pull the first one down.",
        "",
        "| size | points | milliseconds | MiB | time | memory | by arithmetic |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in found.items():
        axis = AXES[name]
        grown = (f"{fitted(points, which)} ({fitted(points, which, last=2)})" for which in (0, 1))
        columns = (
            f"{axis.what}{', ' * bool(axis.unit)}{axis.unit}",
            ", ".join(f"{size:,}" for size in points),
            ", ".join(f"{point.seconds * 1e3:.3g}" for point in points.values()),
            ", ".join(f"{point.mebibytes:.0f}" for point in points.values()),
            *grown,
            axis.why,
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def fitted(points: dict[int, Point], which: int, last: int = 0) -> str:
    """The exponent of time or memory, over all points or the last ones."""
    return f"{exponent({size: max(point[which], 0.01) for size, point in list(points.items())[-last:]}):.2f}"


if __name__ == "__main__":
    main()
