"""What the sample order takes at scale, and how well it shuffles.

    python -m benchmarks.order [--shards 1000000] [--samples 10000] [--lanes 4096] [--folder DIR]

Makes manifests of as many shards (no tars: nothing is read of them) whose counts are even, or spread by a tenth; then
a process of its own for a rank opens one, with 8 workers forked from it. What it takes is told without Python and the
libraries. Exactness is looked up: every turn of an epoch of some lanes. Shuffling is measured on 1,024 shards of 1,000
samples, against NumPy's permutation of all. Writes ``benchmarks/results/order.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from benchmarks import shuffling
from benchmarks.machine import describe
from benchmarks.memory import own_pages, peak, resident
from mmformer.data.manifest import Manifest, Shard
from mmformer.data.order import Order, OrderSpec
from mmformer.data.shards import ShardReader

RESULT = Path("benchmarks/results/order.md")
WORKERS = 8


class Rows(Sequence[Shard]):
    """A table that is made as it is read."""

    def __init__(self, shards: int, samples: int, spread: int) -> None:
        self.counts = samples + np.random.default_rng(0).integers(-spread, spread + 1, shards)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        if not number < len(self):
            raise IndexError(number)
        stem = f"part-{number // 1000:05d}/web-train-{number:07d}"
        count = int(self.counts[number])
        return Shard(f"{stem}.tar", "train", count, count * 100_000, f"{number:064x}", f"{stem}.index.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10**6)
    parser.add_argument("--samples", type=int, default=10**4)
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument("--folder", type=Path, help="where manifests are made, and kept; default: a temporary one")
    parser.add_argument("--rank", nargs=2, metavar=("FOLDER", "RANK"), help="be a rank, in this process")
    args = parser.parse_args()
    if args.rank:
        print(json.dumps(be_rank(Path(args.rank[0]), int(args.rank[1]), args.lanes)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        scale = {
            name: at_scale(folder / name, Rows(args.shards, args.samples, spread), args.lanes)
            for name, spread in (("even", 0), ("uneven", args.samples // 10))
        }
    text = report(args, scale)
    print(text)
    if (args.shards, args.samples, args.lanes) == (10**6, 10**4, 4096):
        RESULT.write_text(text, encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- at scale


def at_scale(folder: Path, rows: Rows, lanes: int) -> dict[str, float]:
    """What a rank says of itself, and the size of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "manifest.json").exists():
        Manifest(folder, rows).save()
    # A rank in the middle: none is special.
    command = [sys.executable, "-m", "benchmarks.order", "--lanes", str(lanes), "--rank", str(folder), str(lanes // 3)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"manifest": size / 2**20, **json.loads(told.splitlines()[-1])}


def be_rank(folder: Path, rank: int, lanes: int) -> dict[str, float]:
    """Open a set, start, read; then do so in workers."""
    OrderSpec(lanes=2).build([5, 6, 7], 0).locate(3)  # what a library takes at its first call is none of the order's
    before = resident()
    reader, order, first, cpu = start(folder, rank, lanes)
    most = peak()
    held = resident() - before
    turns = 200_000
    worked = time.process_time()
    for turn in range(turns):
        order.locate(turn * lanes + rank)
    walked = time.process_time() - worked
    memory = {"held": held, "peak": most - before, "after": resident() - before}
    took = {"cpu": cpu, **{name: value / 2**20 for name, value in memory.items()}}
    with multiprocessing.get_context("fork").Pool(WORKERS, _adopt, (order, lanes, rank)) as pool:
        workers = pool.map(_work, range(WORKERS), chunksize=1)
    exact = sum(whole_epoch(order, lane, epoch) for lane, epoch in ((rank, 0), (rank, 5), (0, 1), (lanes - 1, 2)))
    dealt = np.array_equal(np.sort(np.concatenate(order.shards)), np.arange(len(reader.counts)))
    return {
        **took,
        "start": min(first, *(start(folder, rank, lanes)[2] for _ in range(4))),
        "locate": walked / turns * 1e6,
        "workers": sum(workers),
        "looked up": exact,
        "dealt": float(dealt),
        "samples": len(order),
        "imbalance": max(order.lengths) / min(order.lengths) - 1,
    }


_WORKER: dict[str, Any] = {}


def _adopt(order: Order, lanes: int, rank: int) -> None:
    _WORKER.update(order=order, lanes=lanes, rank=rank, before=own_pages())


def _work(worker: int) -> float:
    """A worker's part of 400 batches of 64 samples a rank; by how much its own memory grew, in MiB."""
    order, lanes, rank = _WORKER["order"], _WORKER["lanes"], _WORKER["rank"]
    for batch in range(worker, 400, WORKERS):
        for turn in range(batch * 64, (batch + 1) * 64):
            order.locate(turn * lanes + rank)
    return own_pages() - float(_WORKER["before"])


def start(folder: Path, rank: int, lanes: int) -> tuple[ShardReader, Order, float, float]:
    """A reader and its order, once the first sample is known; the seconds that it took, on the clock and of work."""
    began, worked = time.perf_counter(), time.process_time()
    reader = ShardReader(Manifest.load(folder), "train")
    order = OrderSpec(lanes=lanes).build(reader.counts, seed=0)
    assert reader.shards[order.locate(rank).shard].split == "train"
    return reader, order, time.perf_counter() - began, time.process_time() - worked


def whole_epoch(order: Order, lane: int, epoch: int) -> int:
    """The turns of one epoch of a lane, each of whose samples is checked to be read once."""
    lanes, length = order.spec.lanes, order.lengths[lane]
    starts = dict(zip(order.shards[lane].tolist(), np.cumsum(order.counts[order.shards[lane]]).tolist(), strict=True))
    seen = np.zeros(length, bool)
    for turn in range(epoch * length, (epoch + 1) * length):
        place = order.locate(turn * lanes + lane)
        assert place.epoch == epoch
        assert 0 <= place.row < order.counts[place.shard]
        seen[starts[place.shard] - 1 - place.row] = True
    assert seen.all(), "as many turns as samples, and each sample was read: each once"
    return length


def microseconds(lanes: int, shards: int, count: int, block: int) -> float:
    """Of one lookup, of those that follow each other: the best of five."""
    order = OrderSpec(lanes=lanes, block=block).build([count] * shards, seed=0)
    found = []
    for _ in range(5):
        began = time.process_time()
        for position in range(20_000):
            order.locate(position)
        found.append((time.process_time() - began) / 20_000 * 1e6)
    return min(found)


# ---------------------------------------------------------------------------------------------------------- report


SCALE = """One rank, which reads one lane of as many as there are ranks. It has started when it has opened the manifest,
shared out the shards and looked up its first sample (on the clock, the best of five). Memory is what comes on top of
Python and its libraries, mapped pages of the manifest's table among it, at the start, at most, and after 200,000
samples; that of the workers is what they alone hold. Uneven: by how much the longest lane is longer than the shortest.
Turns: so many were looked up, four epochs of three lanes, and each of their samples was there exactly once; that no
lane and no epoch can differ is shown in `mmformer/data/order.py`.

| counts | table, MiB | start, s | CPU, s | memory, MiB | most | after 200,000 | workers | lookup, µs | turns | uneven |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def report(args: argparse.Namespace, scale: dict[str, dict[str, float]]) -> str:
    title = f"{args.shards:,} shards of {args.samples:,} samples, {args.lanes:,} ranks of {WORKERS} workers"
    lookups = ((1, 4, 256, 4096), (2, 8, 1000, 4096), (8, 64, 10_000, 4096), (8, 64, 10_000, 10**5))
    lines = [
        "# The sample order at scale",
        "",
        f"`python -m benchmarks.order`. {describe()}.",
        "",
        f"## {title}",
        "",
        SCALE + "\n".join(_scale_row(name, told) for name, told in scale.items()),
        "",
        "## Lookups",
        "",
        "| lanes | shards | samples of each | block | µs |",
        "|---" * 5 + "|",
        *(f"| {' | '.join(f'{number:,}' for number in which)} | {microseconds(*which):.2f} |" for which in lookups),
        "",
        shuffling.table(),
    ]
    return "\n".join(lines)


def _scale_row(name: str, told: dict[str, float]) -> str:
    assert told["dealt"], "each shard is in one lane"
    cells = [
        name,
        f"{told['manifest']:.0f}",
        f"{told['start']:.2f}",
        f"{told['cpu']:.2f}",
        f"{told['held']:.0f}",
        f"{told['peak']:.0f}",
        f"{told['after']:.0f}",
        f"{told['workers']:.1f}",
        f"{told['locate']:.2f}",
        f"{told['looked up']:,.0f}",
        f"{told['imbalance']:.3%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
