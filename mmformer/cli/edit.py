"""``mmformer edit``: a bundle made into another one, for other sizes or words, or without some parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import arguments
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer edit WORDS``; the exit code.

    Raises:
        InputError: wrong words, or the model cannot be changed so.
    """
    return arguments.run(_add_parser, command, words)


def _add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "edit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Change a trained model, and say what became of its weights. Train it further after that: what was "
        "resized works at once, but not as well as it could.",
        epilog="example:\n  mmformer edit runs/emoji_vit/bundle bundles/larger --image-size 64",
    )
    positive = arguments.positive
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write the new one to")
    size = "pixels of pictures: a side, or height and width; learned positions are resized"
    parser.add_argument("--image-size", type=positive, nargs="+", metavar="N", help=size)
    parser.add_argument(
        "--audio-seconds", type=_seconds, metavar="S", help="longest sound; learned positions are resized"
    )
    patch = "side of the patches of pictures, in pixels; their projection is resized as FlexiViT's, and positions"
    parser.add_argument("--patch", type=positive, metavar="N", help=patch)
    vocabulary = "another vocabulary; rows of pieces that both have are kept"
    parser.add_argument("--vocabulary", metavar="FILE", help=vocabulary)
    rows = "what new pieces' rows begin with (default: %(default)s)"
    parser.add_argument("--new-rows", choices=("mean", "random"), default="mean", help=rows)
    context = "longest text in tokens; learned positions that are missing are drawn"
    parser.add_argument("--context-length", type=positive, metavar="N", help=context)
    drop = "leave a part out: encoders.NAME, decoders.NAME or heads.NAME, and stacks that nothing else names"
    parser.add_argument("--drop", action="extend", nargs="+", default=[], metavar="PART", help=drop)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    parser.set_defaults(run=_edit)


def _edit(args: argparse.Namespace) -> int:
    arguments.check_free(args.folder, args.overwrite)
    from mmformer.surgery.edit import EditSpec, edit_bundle

    size = args.image_size
    if size is not None and len(size) > 2:
        raise InputError(f"--image-size is a side, or height and width, but has {len(size)} numbers: {size}.")
    spec = EditSpec(
        image_size=None if size is None else (size[0], size[-1]),
        audio_seconds=args.audio_seconds,
        patch=args.patch,
        vocabulary=args.vocabulary,
        new_rows=args.new_rows,
        context_length=args.context_length,
        drop=tuple(args.drop),
        seed=args.seed,
    )
    report = edit_bundle(args.bundle, args.folder, spec)
    print(f"{args.folder}:")
    for line in report.lines():
        print(f"  {line}")
    return 0


def _seconds(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, but is {word!r}") from None
