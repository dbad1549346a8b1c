"""``mmformer parts``: what a stack can be made of."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmformer.cli import arguments, output
from mmformer.errors import InputError, nearest

if TYPE_CHECKING:
    from mmformer.catalogue import Entry

_EXAMPLES = """examples:
  mmformer parts                              every part
  mmformer parts mixer                        the parts of one kind
  mmformer parts MambaSpec                    a part, with what its options mean
  mmformer parts mixer --supports causal,cache

In costs, L is the tokens of a row, D the width of the stack, and the rest are options of the part.
"""


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer parts WORDS``; the exit code.

    Raises:
        InputError: wrong words, or a part, kind or ability that there is not.
    """
    return arguments.run(add_parser, command, words)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``parts`` to the command line."""
    parts = subparsers.add_parser(
        "parts",
        description="List the parts that a stack can be made of: what they cost, what they can, where they come from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts.add_argument("names", metavar="KIND|PART", nargs="*", help="kinds and parts (default: all)")
    parts.add_argument("--supports", metavar="ABILITIES", help="only parts that can all of these, as in causal,cache")
    parts.add_argument("--json", action="store_true", help="print JSON instead")
    parts.set_defaults(run=_parts)


def _parts(args: argparse.Namespace) -> int:
    from mmformer.catalogue import catalogue

    entries = catalogue()
    named = _named(entries, args.names)
    shown = _supporting(named or entries, args.supports)
    if args.json:
        output.print_json(map(_data, shown))
        return 0
    whole = {entry.name for entry in shown if any(_same(entry.name, name) for name in args.names)}
    kind = None
    for entry in shown:
        if entry.kind != kind:
            kind = entry.kind
            print(f"{kind}\n{'=' * len(kind)}\n")
        print("\n".join(_lines(entry, entry.name in whole)) + "\n")
    return 0


def _named(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    known = list(dict.fromkeys(word for entry in entries for word in (entry.kind, entry.name)))
    for name in names:
        if not any(_same(word, name) for word in known):
            kinds = ", ".join(dict.fromkeys(entry.kind for entry in entries))
            raise InputError(
                f"There is no kind of part and no part named {name!r}.{nearest(name, known)} Kinds: {kinds}."
            )
    return [entry for entry in entries if any(_same(word, name) for word in entry[:2] for name in names)]


def _same(word: str, name: str) -> bool:
    """Whether a kind or part is meant: ``Feed forward`` is also feedforward, and ``MambaSpec`` Mamba."""
    one, other = (text.lower().replace(" ", "").replace("-", "").removesuffix("spec") for text in (word, name))
    return one == other


def _supporting(entries: Sequence[Entry], abilities: str | None) -> list[Entry]:
    wanted = [word.strip() for word in abilities.split(",")] if abilities is not None else []
    known = sorted({ability for entry in entries for ability in entry.supports})
    for word in wanted:
        if word not in known:
            raise InputError(f"--supports {word}: these parts can {', '.join(known)}.{nearest(word, known)}")
    return [entry for entry in entries if set(wanted) <= set(entry.supports)]


def _lines(entry: Entry, meanings: bool) -> Iterable[str]:
    yield entry.name
    yield f"    {entry.what.replace('``', '')}"
    yield f"    cost      {entry.cost}"
    if entry.supports:
        yield f"    supports  {', '.join(entry.supports)}"
    if entry.needs:
        yield f"    needs     a mixer with {', '.join(entry.needs)}"
    yield f"    from      {entry.source}"
    if not meanings and entry.options:
        yield f"    options   {', '.join(f'{option.name}: {_told(option.default)}' for option in entry.options)}"
    elif entry.options:
        yield "    options"
        for option in entry.options:
            yield f"        {option.name}: {_told(option.default)}"
            yield f"            {option.meaning.replace('``', '')}"


def _told(default: Any) -> str:
    """A default as a run file has it."""
    import json

    from mmformer.config import to_data

    data = to_data(default)
    if isinstance(data, dict):
        return str(data.get("class_path", data)).rpartition(".")[2]
    return json.dumps(data, ensure_ascii=False).strip('"')


def _data(entry: Entry) -> dict[str, Any]:
    options = {option.name: {"default": _told(option.default), "meaning": option.meaning} for option in entry.options}
    return {**entry._asdict(), "options": options}
