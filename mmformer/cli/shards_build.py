"""``mmformer shards build``: sets of samples of what people have."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmformer.cli import arguments
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.data.building.build import BuildSpec
    from mmformer.data.building.draft import Found, LeftOut
    from mmformer.data.manifest import Manifest

_BUILD = """OUT is a new folder of shards (tars, which webdataset reads too), with a manifest that has their hashes, and
left_out.tsv, which says what did not become a sample, and why.

examples:
  mmformer shards build --images shots/ --captions captions.csv OUT
  mmformer shards build --images shots/ --sidecars OUT --validation 0.05 --test 0.05
  mmformer shards build --sounds calls/ --captions calls.parquet --sound-column clip OUT
  mmformer shards build --classes animals/ OUT
  mmformer shards build --texts 'books/*.txt' OUT
  mmformer shards build --webdataset 'laion/{00000..00009}.tar' OUT
  mmformer shards build --webdataset 'cc3m/*.tar' --split train='*train*' --split val='*val*' OUT
"""


def add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``build``."""
    build = commands.add_parser(
        "build",
        help="make a set of what you have",
        description="Make a set of samples of pictures, sounds and texts.",
        epilog=_BUILD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("output", metavar="OUT", help="the folder to make")
    given = build.add_argument_group("what there is (one of the first five, or images and sounds of one table)")
    given.add_argument("--images", metavar="DIR", help="pictures that a table or files beside them have captions for")
    given.add_argument("--sounds", metavar="DIR", help="sounds, likewise")
    given.add_argument("--classes", metavar="DIR", help="a folder of pictures or sounds for each class")
    given.add_argument("--texts", metavar="FILES", action="append", help="a text file, a folder of .txt, or a pattern")
    given.add_argument("--webdataset", metavar="TARS", action="append", help="tars of webdataset or img2dataset")
    table = build.add_argument_group("captions")
    table.add_argument("--captions", metavar="TABLE", help=".csv, .tsv, .jsonl or .parquet, a row for each caption")
    table.add_argument("--sidecars", action="store_true", help="NAME.json or NAME.txt beside each NAME.png")
    for column in ("image", "sound", "caption"):
        table.add_argument(f"--{column}-column", metavar="NAME", help="where it has no usual name")
    table.add_argument("--keep-columns", metavar="NAMES", help="others to keep, such as by,licence (default: all)")
    table.add_argument("--text-unit", choices=("line", "file"), default="line", help="of --texts (default: line)")
    splits = build.add_argument_group("splits")
    splits.add_argument(
        "--split",
        action="append",
        metavar="NAME[=PATTERN]",
        help="of what is not held out (default: train); or of the samples of the --webdataset tars whose names match",
    )
    splits.add_argument("--validation", metavar="SHARE", type=float, default=0.0, help="held out as val, such as 0.05")
    splits.add_argument("--test", metavar="SHARE", type=float, default=0.0, help="held out as test")
    splits.add_argument("--split-column", metavar="NAME", help="a column of the table has the splits' names")
    splits.add_argument("--split-folders", action="store_true", help="--classes DIR has DIR/SPLIT/CLASS/")
    splits.add_argument("--seed", metavar="N", type=int, default=0, help="of the order and of what is held out")
    how = build.add_argument_group("how")
    how.add_argument("--name", metavar="NAME", default="set", help="what the files are called (default: set)")
    how.add_argument("--shard-size", metavar="N", type=int, default=1000, help="samples in a shard (default: 1000)")
    how.add_argument("--keep-order", action="store_true", help="do not shuffle")
    how.add_argument("--no-decode", action="store_true", help="do not look for damaged files")
    how.add_argument("--image-format", metavar="EXT", help="convert other pictures to png, jpg or webp")
    how.add_argument("--sound-format", metavar="EXT", help="convert other sounds to wav, flac or ogg")
    how.add_argument("--resume", action="store_true", help="go on with an interrupted build")
    add_workers(how)
    build.set_defaults(run=_build)


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Adds ``--workers``."""
    parser.add_argument("--workers", metavar="N", type=arguments.positive, help="processes (default: one a core)")


def _build(args: argparse.Namespace) -> int:
    from mmformer.cli.output import progress
    from mmformer.data.building.build import BuildSpec, build, check_output

    output = Path(args.output)
    splits = read_splits(args.split)
    if not _by_name(splits) and len(splits) > 1:
        raise InputError("--split: what is not held out has one. Several are NAME='PATTERN', for --webdataset.")
    spec = BuildSpec(
        name=args.name,
        shard_size=args.shard_size,
        split=next(iter(splits)),
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        keep_order=args.keep_order,
        decode=not args.no_decode,
        image_format=args.image_format,
        sound_format=args.sound_format,
        workers=args.workers,
    )
    check_output(output, args.resume)
    found = _find(args)
    try:
        with progress("building", len(found.drafts), 1) as advance:
            built = build(found, output, spec, args.resume, advance)
    except (KeyboardInterrupt, OSError):
        print(f"mmformer: {output} is not built. The same command with --resume goes on.", file=sys.stderr)
        raise
    _print_built(built.manifest, built.left_out, spec)
    return 0


def _find(args: argparse.Namespace) -> Found:
    """The samples to be."""
    from mmformer.data.building import samples, tables, tars
    from mmformer.data.patterns import find_files

    given = [name for name in ("images", "sounds", "classes", "texts", "webdataset") if getattr(args, name)]
    if not given and args.captions:
        given = ["captions"]  # texts with their labels, say
    table = set(given) <= {"images", "sounds", "captions"}
    if not given or (len(given) > 1 and not table):
        said = " and ".join(f"--{name}" for name in given) or "nothing"
        raise InputError(
            f"build was given {said}: it takes one of --images, --sounds, --classes, --texts, --webdataset, or "
            "--images and --sounds of one table."
        )
    _refuse_options(args, given)
    folders = {name[:-1]: _folder(name, getattr(args, name)) for name in given if name in ("images", "sounds")}
    columns = samples.Columns(
        args.image_column,
        args.sound_column,
        args.caption_column,
        args.split_column,
        None if args.keep_columns is None else tuple(filter(None, map(str.strip, args.keep_columns.split(",")))),
    )
    if table and args.sidecars:
        if len(folders) != 1:
            raise InputError("--sidecars lie beside the files of one folder: --images or --sounds.")
        ((kind, folder),) = folders.items()
        return samples.from_table(tables.sidecars(folder, (kind,)), folders, columns)
    if table:
        if args.captions is None:
            raise InputError(f"--{given[0]} need captions: --captions TABLE, or --sidecars for files beside them.")
        rows = tables.read_table(Path(args.captions))
        found = samples.from_table(rows, folders, columns)
        return found._replace(left_out=[*found.left_out, *samples.not_named(rows, folders, columns)])
    if args.classes:
        return samples.from_classes(_folder("classes", args.classes), args.split_folders)
    if args.texts:
        files = [file for word in args.texts for file in find_files(word, ".txt")]
        return samples.from_texts(files, args.text_unit)
    splits = read_splits(args.split)
    files = [file for word in args.webdataset for file in find_files(word, ".tar")]
    return tars.from_tars(files, args.workers, splits if _by_name(splits) else None)


def read_splits(words: Sequence[str] | None) -> dict[str, str]:
    """Split -> a pattern for the names of its tars, of ``NAME`` and ``NAME=PATTERN``.

    Raises:
        InputError: one has no name, or comes twice.
    """
    splits: dict[str, str] = {}
    for word in words or ["train"]:
        name, _, pattern = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in splits:
            raise InputError(
                f"--split {word}: write NAME, or NAME='PATTERN' for the names of its tars, once each; a name is of "
                "letters, digits, - and _."
            )
        splits[name] = pattern or "*"
    return splits


def _by_name(splits: Mapping[str, str]) -> bool:
    """Whether the names of tars say their splits."""
    return any(pattern != "*" for pattern in splits.values())


def _refuse_options(args: argparse.Namespace, given: Sequence[str]) -> None:
    """Refuse options that would have no effect."""
    tabled = ("images", "sounds", "captions")
    needs = {
        "captions": tabled,
        "sidecars": ("images", "sounds"),
        "image_column": ("images",),
        "sound_column": ("sounds",),
        "caption_column": tabled,
        "keep_columns": tabled,
        "split_column": tabled,
        "split_folders": ("classes",),
    }
    for name, owners in needs.items():
        value = getattr(args, name)
        if value not in (None, False) and not set(owners) & set(given):
            said = " or ".join(f"--{owner}" for owner in owners)
            raise InputError(f"--{name.replace('_', '-')} is for {said}. Leave it out.")
    if args.text_unit != "line" and "texts" not in given:
        raise InputError("--text-unit is for --texts. Leave it out.")
    if args.captions and args.sidecars:
        raise InputError("Captions come from --captions TABLE or from --sidecars: give one of them.")
    by_name = _by_name(read_splits(args.split))
    if by_name and "webdataset" not in given:
        raise InputError("--split NAME='PATTERN' is for --webdataset. Write --split NAME.")
    if (args.split_column or args.split_folders or by_name) and (args.validation or args.test):
        raise InputError("The data says its own splits: leave out --validation and --test.")


def _folder(option: str, given: str) -> Path:
    from mmformer.errors import nearest

    folder = Path(given)
    if not folder.is_dir():
        known = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise InputError(f"--{option} {given}: there is no such folder.{nearest(folder.name, known)}")
    return folder


def _print_built(manifest: Manifest, left_out: Sequence[LeftOut], spec: BuildSpec) -> None:
    from mmformer.cli.output import print_cells
    from mmformer.data.building.build import LEFT_OUT_NAME
    from mmformer.data.building.draft import KIND
    from mmformer.data.building.members import FORMATS
    from mmformer.data.building.samples import counted

    print_splits(manifest)
    if left_out:
        print(f"\n{len(left_out):,} things were left out; {manifest.root / LEFT_OUT_NAME} lists them:")
        print_cells(("cause", "count"), [(cause, f"{count:,}") for cause, count in counted(left_out).items()])
    extensions = {extension for shard in manifest.shards for extension in manifest.index(shard).extensions}
    for kind, chosen in (("image", spec.image_format), ("sound", spec.sound_format)):
        several = sorted(extension for extension in extensions if KIND.get(extension) == kind)
        if chosen is None and len(several) > 1:
            print(
                f"\nThis set has {kind}s as {' and '.join(several)}: {_READ[kind].format(';'.join(several))}build it "
                f"with --{kind}-format {' or '.join(FORMATS[kind])} to have them as one."
            )


_READ = {
    "image": "read them with data.image.member: {}, or ",
    "sound": "a run reads sounds of one format, so ",
}
"""Kind -> what a run makes of several formats."""


def print_splits(manifest: Manifest) -> None:
    """A table of a set's splits."""
    from mmformer.cli.output import print_cells

    rows = []
    for split in manifest.splits:
        shards = manifest.split(split)
        size = sum(shard.bytes for shard in shards) / 1e6
        rows.append((split, f"{sum(shard.samples for shard in shards):,}", f"{len(shards):,}", f"{size:,.1f}"))
    print(manifest.root)
    print_cells(("split", "samples", "shards", "MB"), rows)
