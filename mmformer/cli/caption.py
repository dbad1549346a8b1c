"""``mmformer caption``: what a model writes of pictures or sounds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser
from mmformer.cli.bundles import add_inputs, load
from mmformer.cli.generating import WAYS, add_generation, generation
from mmformer.cli.inputs import PICTURES, SOUNDS, WORDS, find
from mmformer.cli.output import print_json, print_pairs, progress
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer caption WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, _add_caption, _caption)


def _add_caption(parser: Parser) -> None:
    parser.description = (
        f"Write captions: {WAYS}.\n"
        f"Where the decoder reads several things, such as a picture and a question, give all of them.\n"
        f"{PICTURES}\n{SOUNDS}"
    )
    parser.epilog = """examples:
  mmformer caption BUNDLE cat.png shots/
  mmformer caption BUNDLE 'shots/*.jpg' --beams 4 --length-penalty 0.6 --json
  mmformer caption BUNDLE cat.png --top-p 0.9 --seed 7 --prompt "a photo of"
  mmformer caption BUNDLE --sounds calls/
  mmformer caption BUNDLE cat.png --text "what colour is it?\""""
    add_inputs(parser)
    read = "a text that the decoder reads, with each of the others or alone"
    parser.add_argument("--text", metavar="TEXT", help=read)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what each caption begins with")
    add_generation(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _caption(args: argparse.Namespace) -> int:
    values = _values(args)
    way = generation(args)
    model = load(args)
    spec = way(model.transforms.generation)
    rows = list(zip(*values.values(), strict=True))
    with progress("captioning", len(rows), args.batch_size) as done:
        options: dict[str, Any] = {**values, "prompt": args.prompt, "decoder": args.decoder}
        captions = model.caption(**options, spec=spec, progress=done)
    if args.json:
        print_json(
            dict(zip(values, row, strict=True)) | {"caption": caption}
            for row, caption in zip(rows, captions, strict=True)
        )
    else:
        head = " and ".join(WORDS[modality] for modality in values)
        print_pairs((head, "caption"), [(", ".join(r), c) for r, c in zip(rows, captions, strict=True)])
    return 0


def _values(args: argparse.Namespace) -> dict[str, list[str]]:
    """Modality -> what is read of it, as much of each: pictures and sounds are paths, and the text goes with all.

    Raises:
        InputError: there is none, or there are not as many sounds as pictures.
    """
    values = {
        modality: find(modality, words) for modality, words in (("image", args.inputs), ("audio", args.sounds)) if words
    }
    if not values and args.text is None:
        raise InputError("caption needs pictures, --sounds or --text.")
    numbers = [len(paths) for paths in values.values()]
    if len(set(numbers)) > 1:
        raise InputError(f"There are {numbers[0]} pictures and {numbers[1]} sounds: give a sound for each picture.")
    return values if args.text is None else values | {"text": [args.text] * max(numbers, default=1)}
