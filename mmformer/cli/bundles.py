"""What the commands on a bundle share: their own words, and the pictures, sounds and texts that they are given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmformer.cli.arguments import Parser
from mmformer.cli.inputs import find, read_lines, split_list
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.predictor import Predictor


def run(
    command: str,
    words: Sequence[str],
    add_arguments: Callable[[Parser], None],
    do: Callable[[argparse.Namespace], int],
) -> int:
    """Run ``mmformer COMMAND BUNDLE WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    parser = Parser(prog=f"mmformer {command}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder bundle/ that a run's output ends with")
    add_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    batch = "values that are computed at once (default: %(default)s)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=batch)
    # Intermixed: in `retrieve BUNDLE --images folder/ "a red heart"` an option stands between the positional words.
    return do(parser.parse_intermixed_args(list(words)))


def load(args: argparse.Namespace) -> Predictor:
    """The bundle that a command names."""
    from mmformer.predictor import load as open_bundle

    return open_bundle(args.bundle, args.device, args.batch_size, getattr(args, "encoder", ()))


def add_inputs(parser: Parser) -> None:
    parser.add_argument("inputs", metavar="PICTURE", nargs="*", help="a file, a folder or a pattern")
    parser.add_argument("--sounds", nargs="+", action="extend", default=[], metavar="SOUND", help="instead of pictures")


def found(args: argparse.Namespace, command: str) -> tuple[str, list[str]]:
    """The modality of what ``add_inputs`` was given, and the paths.

    Raises:
        InputError: there are none, or both are given, or one names nothing.
    """
    if bool(args.inputs) == bool(args.sounds):
        raise InputError(f"{command} needs pictures or --sounds, and not both.")
    modality = "image" if args.inputs else "audio"
    return modality, find(modality, args.inputs or args.sounds)


def add_encoder(parser: Parser) -> None:
    what = "which to embed with, where the bundle has several of one modality; one for each"
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME", help=what)


def add_texts(group: argparse._MutuallyExclusiveGroup, what: str) -> None:
    group.add_argument("--texts", action="append", metavar="LIST", help=f"{what}, with commas between them")
    group.add_argument("--texts-file", metavar="FILE", help=f"{what}, one a line")


def add_output(parser: Parser, what: str) -> None:
    parser.add_argument("--top", type=positive, default=5, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def listed(lists: list[str] | None, option: str, file: str | None) -> list[str] | None:
    """The texts of a pair of options; those that are not labels need no twins."""
    if lists is None and file is None:
        return None
    texts = split_list(lists, option) if lists is not None else read_lines(str(file))
    return texts if option == "--labels" else list(dict.fromkeys(texts))


def positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, but is '{word}'")
    return int(word)
