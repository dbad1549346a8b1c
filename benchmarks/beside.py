"""The frame of the side-by-side rows: the same work by mmformer and by a peer, in one process.

Results are compared first; then both are called in the order A B B A after a warm-up, on 2 threads. A row's number is
the median of the peer's time over ours, pair by pair, with the least and the most of them; beside it stands what share
of the machine's ceiling ours reaches, measured in the same run, before and after: of its rate of matrix products, or,
where few rows read many weights, of the rate of a copy.

Each file of rows has a list ``ROWS`` and ends with ``main(ROWS)``: it can be run alone, or with the others by
``python -m benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import describe, kind
from mmformer.scaling.meter import Meter

THREADS = 2
RESULTS = Path("benchmarks/results/beside")
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 4, 15, 60.0
"""A B B A is a round. A row has so many that they take about so many seconds, and both are timed eight times at least:
seven are asked for."""


class Work(NamedTuple):
    """What is timed: two calls that make the same."""

    ours: Callable[[], object]
    theirs: Callable[[], object]
    difference: float | None
    """Between what they make, over the largest of the peer's; of tokens, the share that is not equal. None: what they
    make is not to be compared; the row says why."""
    told: bool = False
    """The calls return the seconds that count; others are part of neither's work."""
    reads: float = 0.0
    """Bytes that a call has to read, of work that memory bounds; 0: products bound it, if anything."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: of its file under ``results/beside``.
        what: the work.
        peer: the distribution that it is measured against.
        items: that one call works on.
        unit: of those.
        at_least: times as fast as the peer, which the row has to show; None: it is only recorded.
        allowed: difference of results; a row that has more is not timed.
        make: builds both.
        because: where the speed comes from; of work that need not be done: which.
        dtype: of the products, whose rate is the ceiling; None: they are not what bounds the row.
        memory: measures the MiB that ours and the peer's take, each in a fresh process; None: time alone.
        memory_of: what is measured there, where that is not the row's work.
        memory_at_most: share of the peer's that ours may take.
    """

    name: str
    what: str
    peer: str
    items: int
    unit: str
    at_least: float | None
    allowed: float
    make: Callable[[], Work]
    because: str = ""
    dtype: torch.dtype | None = torch.float32
    memory: Callable[[], tuple[float, float]] | None = None
    memory_at_most: float | None = None
    memory_of: str = ""


@dataclass(frozen=True)
class Result:
    """What a row's run showed; ``ratio`` is the peer's time over ours."""

    name: str
    what: str
    peer: str
    unit: str
    ours: float  # items a second
    theirs: float
    ratio: float
    least: float
    most: float
    at_least: float | None
    difference: float | None
    ceiling: float | None  # share of the rate of matrix products, or of a copy
    because: str
    repeats: int
    machine: str
    command: str
    memory: tuple[float, float] | None = None  # MiB, ours and the peer's
    memory_at_most: float | None = None
    memory_of: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Result:
        """What ``as_data`` made."""
        memory = data["memory"]
        return cls(**{**data, "memory": None if memory is None else tuple(memory)})

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def reached(self) -> bool:
        """Whether the row shows what it has to."""
        fast = self.at_least is None or self.ratio >= self.at_least
        return fast and (self.memory_share is None or self.memory_share <= (self.memory_at_most or 1.0))

    @property
    def memory_share(self) -> float | None:
        """Ours over the peer's."""
        return None if self.memory is None else self.memory[0] / self.memory[1]

    @property
    def line(self) -> str:
        """Of the table."""
        share = "" if self.ceiling is None else f"{self.ceiling:.0%}"
        bound = "" if self.at_least is None else f"{self.at_least:.3g}{'' if self.reached else ' (missed)'}"
        of = f"; {self.memory_of}" if self.memory_of else ""
        memory = "" if self.memory is None else f"{self.memory_share:.2f} ({self.memory[0]:,.0f} MiB{of})"
        difference = "not compared" if self.difference is None else f"{self.difference:.0e}"
        return (
            f"| {self.what} | {self.peer} | {_figure(self.ours)} | {_figure(self.theirs)} | {self.unit}/s "
            f"| **{self.ratio:.2f}** ({self.least:.2f} to {self.most:.2f}) | {bound} | {share} | {memory} "
            f"| {difference} | {self.because} |"
        )


HEAD = (
    "| work | peer | ours | theirs | | times as fast (least to most) | at least | share of the ceiling "
    "| memory | results differ by | where it comes from |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def compare(work: Work, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both calls, in the order A B B A."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = (work.ours, work.theirs)
    for call in calls:
        call()
    for _ in range(rounds):
        for which in (0, 1, 1, 0):
            began = time.perf_counter()
            made = calls[which]()
            taken = time.perf_counter() - began
            times[which].append(float(made) if work.told else taken)  # type: ignore[arg-type]
    return times


def measure(row: Row) -> Result:
    """Run a row.

    Raises:
        SystemExit: the two make different things, so that their times say nothing.
    """
    torch.manual_seed(0)
    work = row.make()
    if work.difference is not None and not work.difference <= row.allowed:
        raise SystemExit(
            f"{row.name}: results differ by {work.difference:.1e}, more than {row.allowed:g}: they are not timed."
        )
    before = _rate(row, work)
    began = time.perf_counter()
    work.ours()
    work.theirs()
    taken = 2 * (time.perf_counter() - began)
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(SECONDS / taken)))
    mine, other = compare(work, rounds)
    ratios = sorted(b / a for a, b in zip(mine, other, strict=True))
    seconds = statistics.median(mine)
    return Result(
        row.name,
        row.what,
        f"{row.peer} {version(row.peer)}",
        row.unit,
        row.items / seconds,
        row.items / statistics.median(other),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        row.at_least,
        work.difference,
        _share(work, seconds, before, _rate(row, work)),
        row.because,
        len(mine),
        describe(),
        f"python -m benchmarks --only {row.name}",
        None if row.memory is None else row.memory(),
        row.memory_at_most,
        row.memory_of,
    )


def _rate(row: Row, work: Work) -> float | None:
    """What bounds a row, a second: bytes of a copy or FLOPs of products; None: nothing that is measured here.

    A machine that is shared is faster at times than at others: it is taken before the rounds and after them.
    """
    if work.reads:
        return copy_rate()
    return None if row.dtype is None else product_rate(row.dtype)


def _share(work: Work, seconds: float, *rates: float | None) -> float | None:
    """How much of what bounds it, at the best of these rates, a call reaches."""
    known = [rate for rate in rates if rate is not None]
    return (work.reads or _flops(work.ours)) / seconds / max(known) if known else None


def _flops(call: Callable[[], object]) -> float:
    """Of the products of one call."""
    with Meter() as meter:
        call()
    return float(meter.flops)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a matrix product on this machine: the best of several."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def copy_rate(size: int = 2**28) -> float:
    """Bytes a second that a copy reads and writes on this machine: the best of several."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return 2 * size / min(times)


def main(rows: Sequence[Row]) -> None:
    """Run the rows of one file, as its command does."""
    names = [row.name for row in rows]
    parser = argparse.ArgumentParser(description="Rows of the side-by-side table; see benchmarks/beside.py.")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    quiet()
    print(HEAD)
    for row in rows:
        if row.name in arguments.only:
            result = measure(row)
            keep(result)
            print(result.line, flush=True)


def quiet() -> None:
    """Two threads, and no word of the peers' own."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def keep(result: Result) -> None:
    """Write what a row showed on this kind of processor."""
    folder = RESULTS / kind()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.as_data(), indent=2, ensure_ascii=False) + "\n"
    (folder / f"{result.name}.json").write_text(text, encoding="utf-8")


def kept(names: Iterable[str], processor: str) -> dict[str, Result]:
    """What rows showed before on a kind of processor, of those that have been run there."""
    files = {name: RESULTS / processor / f"{name}.json" for name in names}
    return {name: Result.of(json.loads(file.read_text("utf-8"))) for name, file in files.items() if file.exists()}


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
