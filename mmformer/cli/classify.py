"""``mmformer classify``: labels for pictures, sounds or texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser
from mmformer.cli.bundles import add_encoder, add_inputs, add_output, found, listed, load
from mmformer.cli.inputs import PICTURES, SOUNDS, WORDS, read_lines
from mmformer.cli.output import print_json, print_table, progress, short
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer classify WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, _add_classify, _classify)


def _add_classify(parser: Parser) -> None:
    parser.description = (
        "Say which labels fit pictures or sounds best: how probable each is among them, or, by a model of the sigmoid\n"
        "loss (SigLIP), by itself; or which classes of a head fit texts.\n"
        f"{PICTURES}\n{SOUNDS}"
    )
    parser.epilog = """examples:
  mmformer classify BUNDLE cat.png --labels "cat,dog,pizza"
  mmformer classify BUNDLE shots/ --labels-file animals.txt --template "a photo of a {}" --template "a drawing of a {}"
  mmformer classify BUNDLE --sounds calls/ --labels "cat,dog"
  mmformer classify BUNDLE 'shots/*.jpg' --json        # the classes that the bundle's own head knows
  mmformer classify BUNDLE --text "a fine film" "a dull one"    # of texts, these alone"""
    add_inputs(parser)
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--text", nargs="+", action="extend", metavar="TEXT", help="instead of pictures")
    texts.add_argument("--texts-file", metavar="FILE", help="instead of pictures, texts, one a line")
    labels = parser.add_mutually_exclusive_group()
    among = "choose among these, with commas between them (default: the classes that the bundle's head knows)"
    labels.add_argument("--labels", action="append", metavar="LIST", help=among)
    labels.add_argument("--labels-file", metavar="FILE", help="choose among these, one a line")
    templates = parser.add_mutually_exclusive_group()
    prompt = "a prompt with {} for the label; give several to average them (default: {})"
    templates.add_argument("--template", action="append", metavar="TEXT", help=prompt)
    templates.add_argument("--templates-file", metavar="FILE", help="prompts, one a line")
    head = "where the bundle has several: whose classes, or, with labels, whose temperature"
    parser.add_argument("--head", metavar="NAME", help=head)
    add_encoder(parser)
    add_output(parser, "labels to show for each")


def _values(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The modality of what is to be classified, and its paths, or the texts."""
    if args.text is None and args.texts_file is None:
        return found(args, "classify")
    if args.inputs or args.sounds:
        raise InputError("classify takes pictures, sounds or texts: give one kind of them.")
    return "text", args.text or read_lines(args.texts_file)


def _classify(args: argparse.Namespace) -> int:
    labels = listed(args.labels, "--labels", args.labels_file)
    templates = args.template if args.templates_file is None else read_lines(args.templates_file)
    if labels is None and templates is not None:
        raise InputError("A template is for labels, but there are none: give --labels or --labels-file too.")
    if labels is None and args.encoder:
        raise InputError("--encoder is for labels, but there are none: a head has an encoder of its own.")
    modality, paths = _values(args)
    model = load(args)
    options: dict[str, Any] = {modality: paths, "labels": labels, "templates": templates or ("{}",)}
    with progress("classifying", len(paths), args.batch_size) as done:
        answers = model.classify(**options, head=args.head, top=args.top, progress=done)
    named = list(zip(paths, answers, strict=True))
    if args.json:
        print_json(
            {
                modality: name,
                "label": next(iter(answer)),
                "probabilities": {label: short(value) for label, value in answer.items()},
            }
            for name, answer in named
        )
    else:
        groups = [
            (name, [(label, f"{100 * value:.1f} %") for label, value in answer.items()]) for name, answer in named
        ]
        print_table((WORDS[modality], "label", "probability"), groups)
    return 0
