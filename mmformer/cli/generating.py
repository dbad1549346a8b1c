"""How texts are written, as the options of every command that writes some."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmformer.cli.arguments import Parser
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.generation.generation import GenerationSpec

_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_BEAMS = ("beams", "length_penalty", "stop")
_ALL = ("min_length", "max_length", "repetition_penalty", "no_repeat_ngram")

WAYS = "the likeliest word each time, or by --beams, or drawn (--temperature, --top-k, --top-p)"
"""For a command's help."""


def add_generation(parser: Parser) -> None:
    parser.add_argument("--decoder", metavar="NAME", help="which, where the bundle has several")
    parser.add_argument("--beams", type=int, metavar="N", help="search with so many texts side by side")
    power = "power of the length that a text's score is divided by (default: 1)"
    parser.add_argument("--length-penalty", type=float, metavar="POWER", help=power)
    ends = (
        "when the search ends: when nothing better can come (default), when it is not likely to, or with enough texts"
    )
    parser.add_argument("--stop", choices=("certain", "likely", "full"), help=ends)
    parser.add_argument("--temperature", type=float, metavar="T", help="draw; below 1 bolder, above 1 freer")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that add up to P")
    parser.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument("--min-length", type=int, metavar="N", help="tokens at least (default: 0)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens at most (default: what the model holds)")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: write what is new (default: 1)")
    parser.add_argument("--no-repeat-ngram", type=int, metavar="N", help="no run of N tokens twice (default: 0, any)")


def generation(args: argparse.Namespace) -> GenerationSpec:
    """What the options ask for.

    Raises:
        InputError: they do not go together, or one has no such value.
    """
    drawn, beams = _given(args, _SAMPLING), _given(args, _BEAMS)
    if drawn and beams:
        raise InputError(f"{_option(next(iter(drawn)))} draws words, {_option(next(iter(beams)))} searches: give one.")
    if beams and "beams" not in beams:
        raise InputError(f"{_option(next(iter(beams)))} is for a search with beams: give --beams too.")
    if drawn.keys() == {"seed"}:
        raise InputError("--seed is of what is drawn: give --temperature, --top-k or --top-p too.")

    from mmformer.generation.beam import BeamSpec
    from mmformer.generation.sampling import GreedySpec, SamplingSpec

    kind = BeamSpec if beams else SamplingSpec if drawn else GreedySpec
    return kind(**_given(args, _ALL), **drawn, **beams)


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
