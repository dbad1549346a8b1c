"""``mmformer shards``: build sets of samples, index other people's, check, measure and look at them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import arguments, shards_build, shards_look

_INDEX = """examples:
  mmformer shards index laion/
  mmformer shards index 'cc3m/*.tar' --split train='*train*' --split val='*val*' --output cc3m-index/
  mmformer shards index 's3://bucket/laion/{00000..00099}.tar' --output laion-index/
"""


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer shards WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return arguments.run(add_parser, command, words)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``shards`` and its own commands to the command line."""
    family = subparsers.add_parser("shards", help="build sets of samples, and look into them")
    commands = family.add_subparsers(metavar="COMMAND", required=True)
    shards_build.add_build(commands)
    _add_index(commands)
    check = commands.add_parser("check", help="see whether a set is whole, and decode all of it")
    check.add_argument("folder", metavar="FOLDER", help="a folder of shards with its manifest.json")
    check.add_argument("--no-decode", action="store_true", help="compare sizes, counts and hashes only")
    shards_build.add_workers(check)
    check.set_defaults(run=_check)
    shards_build.add_workers(shards_look.add_stats(commands))
    shards_look.add_preview(commands)


def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    index = commands.add_parser(
        "index",
        help="make the manifest of tars that others wrote",
        description="Make the manifest and the indexes of tars, which stay as they are.",
        epilog=_INDEX,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument("tars", metavar="TARS", nargs="+", help="a folder of tars, a pattern, or a URL of either")
    index.add_argument(
        "--split",
        action="append",
        metavar="NAME[=PATTERN]",
        help="the split of all tars (default: train), or of those whose names match",
    )
    index.add_argument("--output", metavar="DIR", help="the folder to write into (default: beside the tars)")
    index.add_argument("--overwrite", action="store_true", help="replace the manifest that is there")
    shards_build.add_workers(index)
    index.set_defaults(run=_index)


def _index(args: argparse.Namespace) -> int:
    from mmformer.cli.output import progress
    from mmformer.data.indexing import index_tars
    from mmformer.data.patterns import find_places

    splits = shards_build.read_splits(args.split)
    places = list(dict.fromkeys(place for word in args.tars for place in find_places(word, ".tar")))
    output = None if args.output is None else Path(args.output)
    with progress("indexing", len(places), 1) as advance:
        manifest = index_tars(places, splits, output, args.overwrite, args.workers, advance)
    shards_build.print_splits(manifest)
    return 0


def _check(args: argparse.Namespace) -> int:
    from mmformer.cli.output import progress
    from mmformer.data.checking import check
    from mmformer.data.remote import open_manifest

    manifest = open_manifest(args.folder)
    damaged, problems = 0, []
    with progress("checking", len(manifest.shards), 1) as advance:
        for _, found in check(manifest, not args.no_decode, args.workers):
            problems += found
            damaged += bool(found)
            advance(1)
    for problem in problems:
        print(problem)
    samples = sum(shard.samples for shard in manifest.shards)
    what = "as the manifest says" if args.no_decode else "as the manifest says, and all of it can be decoded"
    if problems:
        number = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
        where = f"{damaged:,} of {len(manifest.shards):,} shards"
        print(f"mmformer: {number} in {where}. Copy those again, or build the set again.", file=sys.stderr)
        return 2
    print(f"{args.folder}: {samples:,} samples in {len(manifest.shards):,} shards, {what}.")
    return 0
