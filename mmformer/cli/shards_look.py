"""``mmformer shards stats`` and ``preview``: what is in a set, in numbers and in pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmformer.cli import arguments
from mmformer.errors import InputError

_PREVIEW = """examples:
  mmformer shards preview data/emoji --fields names.en --output emoji.png
  mmformer shards preview --config configs/runs/emoji_quickstart.yaml --output augmented.png
"""
_SHOWN = 10


def add_stats(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds ``stats``."""
    stats = commands.add_parser("stats", help="count and measure what is in a set")
    stats.add_argument("folder", metavar="FOLDER", help="a folder of shards with its manifest.json")
    _add_texts(stats)
    stats.add_argument("--label", metavar="PATH", default="", help="the class, in the json (default: label, or .cls)")
    stats.add_argument("--languages", action="store_true", help="guess the language of every text")
    stats.add_argument("--json", action="store_true", help="print JSON instead of tables")
    stats.add_argument("--picture", metavar="FILE", help="draw histograms, such as stats.png")
    stats.add_argument("--overwrite", action="store_true", help="replace the picture that is there")
    stats.set_defaults(run=_stats)
    return stats


def add_preview(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``preview``."""
    preview = commands.add_parser(
        "preview",
        help="draw samples, as they are or as a run augments them",
        description="Draw a sheet of samples with their texts.",
        epilog=_PREVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    preview.add_argument("folder", metavar="FOLDER", nargs="?", help="a folder of shards, to see samples as they are")
    preview.add_argument("--config", metavar="RUN.yaml", help="a run, to see how its training reads and augments")
    preview.add_argument("--output", metavar="FILE", required=True, help="the picture to write, such as preview.png")
    preview.add_argument("--overwrite", action="store_true", help="replace the picture that is there")
    preview.add_argument("--split", metavar="NAME", help="of FOLDER (default: its first)")
    preview.add_argument("--number", metavar="N", type=arguments.positive, help="samples (default: 24; of a run, 8)")
    preview.add_argument("--draws", metavar="N", type=arguments.positive, help="of a run, for each (default: 5)")
    _add_texts(preview)
    preview.set_defaults(run=_preview)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fields",
        nargs="+",
        default=[],
        metavar="PATH",
        help="where texts are in the json: keys joined by dots, * for every key (default: captions, or caption)",
    )
    parser.add_argument("--vocabulary", metavar="FILE", help="a .model file, to count its tokens")


def _stats(args: argparse.Namespace) -> int:
    from mmformer.cli.output import progress
    from mmformer.data.histograms import draw_histograms
    from mmformer.data.remote import open_manifest
    from mmformer.data.statistics import Questions, measure, summary

    target = None if args.picture is None else _target(args.picture, args.overwrite, "--picture")
    manifest = open_manifest(args.folder)
    questions = Questions(tuple(args.fields), args.label, args.vocabulary, args.languages)
    with progress("measuring", len(manifest.shards), 1) as advance:
        splits = measure(manifest, questions, args.workers, advance)
    if args.fields and not any(facts.characters for facts in splits.values()):
        raise InputError(f"{args.folder}: no sample has a text at {', '.join(args.fields)} in its json.")
    if args.label and not any(facts.classes for facts in splits.values()):
        raise InputError(f"{args.folder}: no sample has a class at {args.label} in its json.")
    told = {split: summary(manifest, split, facts) for split, facts in splits.items()}
    if args.json:
        history = [vars(record) for record in manifest.history]
        print(json.dumps({"folder": str(args.folder), "history": history, "splits": told}, ensure_ascii=False))
    else:
        for split, facts in told.items():
            _print_split(split, facts)
        for record in manifest.history:
            print(f"The filter {record.filter} kept {record.kept:,} samples and removed {record.removed:,}.")
    if target is not None:
        samples = sum(facts.samples for facts in splits.values())
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        line = f"{samples:,} samples in {len(manifest.shards):,} shards, {size:,.1f} MB"
        draw_histograms(str(args.folder), line, splits).save(target)
    return 0


def _print_split(split: str, told: Mapping[str, Any]) -> None:
    from mmformer.cli.output import print_cells

    print(f"\n{split}: {told['samples']:,} samples in {told['shards']:,} shards")
    members = told["members"].items()
    rows = [
        (f".{name}", f"{one['count']:,}", f"{one['bytes'] / 1e6:,.2f}", f"{one['unreadable']:,}")
        for name, one in members
    ]
    print_cells(("member", "count", "MB", "unreadable"), rows)
    spans = {
        f"{_WORDS[group]} {name}".strip(): values
        for group in ("images", "sounds", "texts")
        for name, values in told.get(group, {}).items()
        if isinstance(values, dict) and "median" in values
    }
    if spans:
        columns = next(iter(spans.values()))
        print_cells(("", *columns), [(name, *map(_number, values.values())) for name, values in spans.items()])
    if "sounds" in told:
        rates = ", ".join(f"{int(rate):,} Hz ({count:,})" for rate, count in told["sounds"]["rates"].items())
        print(f"sounds: {told['sounds']['hours']:.2f} hours; {rates}")
    if "texts" in told:
        print(f"texts: {told['texts']['count']:,}, of which {told['texts']['distinct']:,} are distinct")
        if "languages" in told["texts"]:
            print(f"languages: {_commonest(told['texts']['languages'])}")
    if "classes" in told:
        classes = told["classes"]
        without = f"; {classes['without']:,} samples have none" if classes["without"] else ""
        print(
            f"classes: {classes['count']:,}, evenness {classes['evenness']:.3f} (1: all alike){without}: "
            f"{_commonest(classes['counts'])}"
        )


_WORDS = {"images": "image", "sounds": "sound", "texts": "text"}


def _commonest(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN])
    return f"{shown}, …" if len(counts) > _SHOWN else shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def _preview(args: argparse.Namespace) -> int:
    from mmformer.data.contact_sheet import draw_contact_sheet

    if (args.folder is None) == (args.config is None):
        raise InputError("preview needs a FOLDER of shards, or --config RUN.yaml: one of them.")
    target = _target(args.output, args.overwrite, "--output")
    if args.config is not None:
        for name in ("split", "fields", "vocabulary"):
            if getattr(args, name):
                raise InputError(f"--{name} is for a FOLDER; the run says its own. Leave it out.")
        rows, title, line = _of_run(args.config, args.number or 8, args.draws or 5)
    else:
        if args.draws:
            raise InputError("--draws is for --config RUN.yaml: a FOLDER does not say how to augment. Leave it out.")
        rows, title, line = _of_folder(args)
    draw_contact_sheet(title, line, rows).save(target)
    print(f"{target}: {line}")
    return 0


def _of_folder(args: argparse.Namespace) -> tuple[list[list[Any]], str, str]:
    from mmformer.data.preview import raw_tiles
    from mmformer.data.remote import open_manifest

    manifest = open_manifest(args.folder)
    split = args.split or manifest.splits[0]
    tiles = raw_tiles(manifest, split, args.number or 24, args.fields, _counter(args.vocabulary))
    rows = [tiles[start : start + 6] for start in range(0, len(tiles), 6)]
    whole = sum(shard.samples for shard in manifest.split(split))
    return rows, str(args.folder), f"{len(tiles)} of the {whole:,} samples of split {split}, as they are"


def _of_run(config: str, number: int, draws: int) -> tuple[list[list[Any]], str, str]:
    from mmformer.cli.options import merged
    from mmformer.config import parse
    from mmformer.data.preview import training_rows
    from mmformer.training.run import RunSpec

    run = parse(RunSpec, merged(RunSpec, [("config", config)]), "")
    rows = training_rows(run.data, run.model.text_encoders(), run.seed, number, draws)
    line = f"{len(rows)} samples of training: on the left as they are read, then as {draws} epochs have them"
    return rows, config, line


def _counter(vocabulary: str | None) -> Callable[[str], int] | None:
    from mmformer.data.statistics import token_counter

    return None if vocabulary is None else token_counter(vocabulary)


def _target(given: str, overwrite: bool, option: str) -> Path:
    target = Path(given)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{option} {given}: a picture's name ends with .png, .jpg or .webp.")
    if not target.parent.is_dir():
        raise InputError(f"{option} {given}: there is no folder {target.parent}. Create it first.")
    arguments.check_replaces(target, overwrite, option)
    return target
