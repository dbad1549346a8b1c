"""``mmformer similarity``: how alike the values of two modalities are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser
from mmformer.cli.bundles import add_encoder, add_texts, listed, load
from mmformer.cli.inputs import PICTURES, SOUNDS, find
from mmformer.cli.output import print_json, print_matrix, progress, short
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer similarity WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, _add_similarity, _similarity)


def _add_similarity(parser: Parser) -> None:
    parser.description = (
        f"Cosine similarities between the values of two modalities: two of --images, --sounds and --texts.\n"
        f"{PICTURES}\n{SOUNDS}"
    )
    parser.epilog = """examples:
  mmformer similarity BUNDLE --images shots/ --texts "cat,dog"
  mmformer similarity BUNDLE --images shots/ --sounds calls/ --json"""
    files = "files, folders or patterns"
    parser.add_argument("--images", nargs="+", action="extend", default=[], metavar="PICTURE", help=files)
    parser.add_argument("--sounds", nargs="+", action="extend", default=[], metavar="SOUND", help=files)
    add_texts(parser.add_mutually_exclusive_group(), "texts")
    add_encoder(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _similarity(args: argparse.Namespace) -> int:
    values = {
        "image": find("image", args.images),
        "audio": find("audio", args.sounds),
        "text": listed(args.texts, "--texts", args.texts_file) or [],
    }
    given: dict[str, Any] = {modality: named for modality, named in values.items() if named}
    if len(given) != 2:
        raise InputError(
            f"similarity compares two modalities, but was given {' and '.join(given) or 'none'}: name two of --images, "
            f"--sounds and --texts (or --texts-file)."
        )
    (first, rows), (_, columns) = given.items()
    model = load(args)
    with progress("comparing", len(rows) + len(columns), args.batch_size) as done:
        matrix = model.similarity(**given, progress=done).tolist()
    if args.json:
        print_json(
            {first: row, "similarities": {column: short(value) for column, value in zip(columns, values, strict=True)}}
            for row, values in zip(rows, matrix, strict=True)
        )
    else:
        print_matrix(rows, columns, [[f"{value:.3f}" for value in values] for values in matrix])
    return 0
