"""All side-by-side rows: mmformer beside what people would otherwise use, one process a row, one run.

    python -m benchmarks [--only ROW ...] [--check]

Writes ``benchmarks/results/beside/PROCESSOR/ROW.json`` for each row, for ratios depend on the kind of processor;
``benchmarks/results/beside.md``, the table; and its picture ``docs/beside.svg``. With ``--check``, nothing is written:
a row whose ratio is below the least that was recorded for it on such a processor fails; one for which nothing was
recorded there is refused. A row that has no result is told, and the exit code is then 1.
``DATA=DIR`` names a folder of public sets as they were published, for the rows that read them; without it they are left
out, with a word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import (
    captioning,
    checkpoint,
    classifier,
    clip_step,
    decoding,
    loading,
    losses,
    padded,
    spectra,
    starting,
    tokenising,
    vit_step,
)
from benchmarks.beside import HEAD, RESULTS, THREADS, Result, Row, keep, kept, measure, quiet
from benchmarks.captions import NotHereError
from benchmarks.machine import kind

FILES = (
    *(clip_step, vit_step, captioning, decoding, padded, losses, classifier, tokenising, loading, spectra),
    *(checkpoint, starting),
)
ROWS: dict[str, Row] = {row.name: row for file in FILES for row in file.ROWS}
TABLE, PLOT, GROWTH = RESULTS.with_suffix(".md"), Path("docs/beside.svg"), RESULTS.with_name("update_growth.md")
CLASSIFIERS = classifier.RESULTS


class RowError(Exception):
    """A row has no result; the others have theirs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--check", action="store_true", help="against what was recorded; write nothing")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result:
        quiet()
        arguments.result.write_text(json.dumps(measure(ROWS[arguments.only[0]]).as_data()), encoding="utf-8")
        return 0
    recorded, fallen, failed = kept(ROWS, kind()), [], []
    missing = [name for name in arguments.only if name not in recorded]
    if arguments.check and missing:
        raise SystemExit(
            f"Of {len(missing)} rows nothing was recorded on this kind of processor ({kind()}) to compare them with. "
            f"Record them: python -m benchmarks --only {' '.join(missing)}; or check others: --check --only "
            f"{' '.join(name for name in arguments.only if name in recorded) or 'ROW'}."
        )
    print(HEAD)
    for name in arguments.only:
        try:
            result = in_a_process(name)
        except NotHereError as error:
            print(f"{name}: not run. {error}", file=sys.stderr)
            continue
        except RowError as error:
            failed.append(name)
            print(error, file=sys.stderr)
            continue
        print(result.line, flush=True)
        if not arguments.check:
            keep(result)
        elif result.ratio < (before := recorded[name]).least:
            fallen.append(f"{name}: {result.ratio:.2f}, recorded {before.ratio:.2f} ({before.least:.2f} at least)")
    if arguments.check:
        print("\n".join(fallen) or "No ratio fell.", file=sys.stderr)
        return 1 if fallen or failed else 0
    found = {folder.name: kept(ROWS, folder.name) for folder in sorted(RESULTS.glob("*/"))}
    everywhere = {name: results for name, results in found.items() if results}
    if not everywhere:
        return 1
    TABLE.write_text(table(everywhere), encoding="utf-8")
    draw(everywhere)
    return 1 if failed else 0


def in_a_process(name: str) -> Result:
    """Run a row in a process of its own, so that none warms or fills the memory of another.

    Raises:
        NotHereError: what it reads is not on this machine.
        RowError: it failed, or the two make different things.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks", "--only", name, "--result", str(file)]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return Result.of(json.loads(file.read_text(encoding="utf-8")))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if NotHereError.__name__ in last:
        raise NotHereError(last.partition(": ")[2])
    raise RowError(f"{name} failed: {last}\n\n{done.stderr}")


def table(everywhere: Mapping[str, Mapping[str, Result]]) -> str:
    """The rows that were run, by what they were run on."""
    lines = ["# mmformer beside its peers", "", "`python -m benchmarks`; each row alone: `--only ROW`."]
    lines += ["", "![Times as fast as the peer, and what was asked](beside.svg)"]
    lines += [
        "",
        "The ceiling is the machine's rate of matrix products, and that of a copy where ids are written one by one,",
    ]
    lines += ["for each reads all weights; both are measured in the row's run, on as many threads."]
    lines += ["", "The order of 10⁹ samples, its start and its going on, is in [a table of its own](order.md)."]
    classifiers = (
        f"[{file.stem.replace('_', ' ')}](classifier/{file.name})" for file in sorted(CLASSIFIERS.glob("*.md"))
    )
    lines += ["", f"A classifier of all of ImageNet's classes, which takes an hour: {', '.join(classifiers)}."]
    for results in everywhere.values():
        machines = list(dict.fromkeys(result.machine for result in results.values()))
        lines += ["", f"## {machines[0].partition(',')[0]}", ""]
        lines += [f"Measured on {machine}; {THREADS} threads." for machine in machines]
        lines += ["", HEAD, *(result.line for result in results.values())]
        left = [name for name in ROWS if name not in results]
        lines += [f"\nNot run there: {', '.join(left)}."] if left else []
    if GROWTH.exists():
        lines += ["", GROWTH.read_text(encoding="utf-8").strip().replace("# ", "## ", 1)]
    return "\n".join(lines) + "\n"


def draw(everywhere: Mapping[str, Mapping[str, Result]]) -> None:
    """How many times as fast each row is on each kind of processor, with its spread, and how many it has to be."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "beside", "font.size": 9})
    names = [name for name in ROWS if any(name in results for results in everywhere.values())]
    figure, axis = pyplot.subplots(figsize=(9, 0.9 + 0.3 * len(names)), layout="constrained")
    for number, (processor, results) in enumerate(everywhere.items()):
        marker, aside = "osD^"[number % 4], 0.7 * ((number + 0.5) / len(everywhere) - 0.5)
        axis.plot([], [], marker, color="grey", label=processor.replace("_", " "))
        for name, result in results.items():
            place, colour = names.index(name) + aside, "tab:blue" if result.reached else "tab:red"
            axis.plot([result.least, result.most], [place, place], color=colour, alpha=0.5, linewidth=2)
            axis.plot(result.ratio, place, marker, color=colour, markersize=4)
            if result.at_least is not None:
                axis.plot(result.at_least, names.index(name), "|", color="black", markersize=10)
    axis.legend(loc="lower right")
    axis.axvline(1, color="grey", linewidth=0.8)
    peers = {name: result.peer for results in everywhere.values() for name, result in results.items()}
    axis.set_ylim(-1, len(names))
    axis.set_yticks(range(len(names)), [f"{name} / {peers[name]}" for name in names])
    axis.set(xscale="log", xlabel="times as fast as the peer (a stroke: what was asked)")
    most = max(result.most for results in everywhere.values() for result in results.values())
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= 2 * most]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
