"""``mmformer retrieve``: what is most like a text, a picture or a sound."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser
from mmformer.cli.bundles import add_encoder, add_output, add_texts, listed, load
from mmformer.cli.inputs import PICTURES, SOUNDS, SUFFIXES, WORDS, find, is_file
from mmformer.cli.output import print_json, print_table, progress, short
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer retrieve WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, _add_retrieve, _retrieve)


def _add_retrieve(parser: Parser) -> None:
    parser.description = (
        f"Find the pictures, sounds or texts that are most like a text, a picture or a sound.\n{PICTURES}\n{SOUNDS}"
    )
    parser.epilog = """examples:
  mmformer retrieve BUNDLE --images shots/ "a red heart" "two dogs"
  mmformer retrieve BUNDLE --images shots/ --images 'more/*.png' --image like_this.png
  mmformer retrieve BUNDLE --images shots/ --sound call.wav
  mmformer retrieve BUNDLE --texts "cat,dog,pizza" --image cat.png"""
    parser.add_argument("queries", metavar="TEXT", nargs="*", help="what to look for; or else --image or --sound")
    like = "look for what is like these"
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="PICTURE", help=like)
    parser.add_argument("--sound", nargs="+", action="extend", default=[], metavar="SOUND", help=like)
    among = parser.add_mutually_exclusive_group()
    one = "look among these; one word, but the option may be given several times"
    among.add_argument("--images", action="append", metavar="PICTURE", help=one)
    among.add_argument("--sounds", action="append", metavar="SOUND", help=one)
    add_texts(among, "look among these")
    add_encoder(parser)
    add_output(parser, "finds to show for each query")


def _retrieve(args: argparse.Namespace) -> int:
    texts = listed(args.texts, "--texts", args.texts_file)
    if texts is None and args.images is None and args.sounds is None:
        raise InputError("retrieve needs what to look among: --images, --sounds, --texts or --texts-file.")
    asked = {"text": args.queries, "image": args.image, "audio": args.sound}
    given = [kind for kind, words in asked.items() if words]
    if len(given) != 1:
        what = f"one of them, not {' and '.join(WORDS[kind] for kind in given)}" if given else "what to look for"
        raise InputError(f"retrieve needs {what}: a TEXT, an --image or a --sound.")
    _refuse_paths(args.queries)
    (wanted,) = given
    queries = asked[wanted] if wanted == "text" else find(wanted, asked[wanted])
    kind = "image" if args.images is not None else "audio" if args.sounds is not None else "text"
    candidates = texts or find(kind, args.images or args.sounds)
    model = load(args)
    with progress("searching", len(candidates), args.batch_size) as done:
        found = model.retrieve(**{wanted: queries, f"{kind}s": candidates}, top=args.top, progress=done)
    named = list(zip(queries, found, strict=True))
    if args.json:
        print_json(
            {
                "query": query,
                "matches": [{kind: candidates[match.candidate], "score": short(match.score)} for match in matches],
            }
            for query, matches in named
        )
    else:
        groups = [
            (query, [(candidates[match.candidate], f"{match.score:.3f}") for match in matches])
            for query, matches in named
        ]
        print_table(("query", WORDS[kind], "similarity"), groups)
    return 0


def _refuse_paths(queries: Sequence[str]) -> None:
    """Refuse paths where texts are expected: the shell made several words of a pattern, of which an option took one."""
    path = next((query for query in queries if query.endswith("/") or (Path(query).suffix and is_file(query))), "")
    if path:
        option = "--sound" if Path(path).suffix.lower() in SUFFIXES["audio"] else "--image"
        raise InputError(
            f"'{path}' is a path, but stands where a text to look for is expected. To look among several files or "
            f"folders, repeat {option}s or put a pattern in quotes; to look for what is like it, use {option}."
        )
