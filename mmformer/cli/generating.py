"""How texts are written, as the options of every command that writes some."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmformer.cli.arguments import Parser
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.generation.generation import GenerationSpec

_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_BEAMS = ("beams", "length_penalty", "stop")
_ALL = ("min_length", "max_length", "repetition_penalty", "no_repeat_ngram")

WAYS = "the likeliest word each time, or by --beams, or drawn (--temperature, --top-k, --top-p)"
"""For a command's help: what is meant where a bundle says nothing."""


def add_generation(parser: Parser) -> None:
    """Those that are not given are as the bundle says, and where it does not, as the defaults here."""
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


def generation(args: argparse.Namespace) -> Callable[[GenerationSpec | None], GenerationSpec]:
    """What the options ask for, given how a bundle writes where nobody says (None: it does not say either).

    Options change what they are of; those of another way to choose words put that in place of the bundle's.

    Raises:
        InputError: they do not go together; what is returned raises it where one has no such value, or is of no use.
    """
    drawn, beams, common = (_given(args, names) for names in (_SAMPLING, _BEAMS, _ALL))
    if drawn and beams:
        raise InputError(f"{_option(next(iter(drawn)))} draws words, {_option(next(iter(beams)))} searches: give one.")

    def over(default: GenerationSpec | None) -> GenerationSpec:
        from mmformer.generation.beam import BeamSpec
        from mmformer.generation.generation import GenerationSpec
        from mmformer.generation.sampling import GreedySpec, SamplingSpec

        default = default or GreedySpec()
        kind = BeamSpec if beams else SamplingSpec if drawn else type(default)
        if beams and "beams" not in beams and not isinstance(default, BeamSpec):
            raise InputError(f"{_option(next(iter(beams)))} is for a search with beams: give --beams too.")
        if drawn.keys() == {"seed"} and not isinstance(default, SamplingSpec):
            raise InputError("--seed is of what is drawn: give --temperature, --top-k or --top-p too.")
        kept = GenerationSpec if kind is not type(default) else kind
        values = {field.name: getattr(default, field.name) for field in dataclasses.fields(kept)}
        if "max_length" in common:
            values["total_length"] = None
        if "min_length" in common:
            values["total_min_length"] = 0
        return kind(**values | common | drawn | beams)

    return over


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
