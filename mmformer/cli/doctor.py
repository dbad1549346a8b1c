"""``mmformer doctor``: looks at a machine, or at all of a job's, before a run does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmformer.cli import arguments

if TYPE_CHECKING:
    from mmformer.data.sources import DataSpec


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer doctor WORDS``; the exit code: 2 where a run would fail.

    Raises:
        InputError: wrong words, or a run file that cannot be read.
    """
    return arguments.run(_add_parser, command, words)


def _add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look at a machine: versions, devices, whether processes find each other and add up right, how "
        "fast the output's disk is, shared memory, the clock; and with --config, whether what a run reads is there. "
        "Started by torchrun or SLURM, it looks at all machines of the job. It exits with 2 where a run would fail.",
        epilog="examples:\n  mmformer doctor\n"
        "  mmformer doctor --config configs/runs/emoji_quickstart.yaml --output runs/first\n"
        "  launch/torchrun.sh --doctor --config RUN.yaml --output DIR",
    )
    parser.add_argument("--config", metavar="RUN.yaml", help="the run whose data is looked at")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("runs"), help="where it would write (default: runs)"
    )
    parser.add_argument(
        "--processes", type=arguments.positive, metavar="N", help="that are tried here (default: one a GPU, at least 2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    data = _data(args.config)
    from mmformer.doctor.examine import examine
    from mmformer.doctor.finding import summary, table

    found = examine(data, args.output, args.processes)
    if not found:  # the first process of the job speaks
        return 0
    if args.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2, ensure_ascii=False))
    else:
        print(table(found), summary(found), sep="\n\n")
    return 2 if any(finding.state == "fault" for finding in found) else 0


def _data(config: str | None) -> DataSpec | None:
    """What a run file reads.

    Raises:
        InputError: it cannot be read, or is not right.
    """
    if config is None:
        return None
    from mmformer.cli.options import merged
    from mmformer.config import parse
    from mmformer.training.run import RunSpec

    data: DataSpec = parse(RunSpec, merged(RunSpec, [("config", config)]), "").data
    return data
