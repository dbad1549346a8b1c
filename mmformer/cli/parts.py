"""``mmformer parts``: what stacks and encoders can be made of."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
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

In costs, L is the tokens of a row, D the width of the stack; the rest are
options of the part or of what it holds. Mixers with heads have projections
besides, L·D². What a part supports is with its default options.
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
        description="List the parts of stacks and encoders: what they cost, what they can, where they come from.",
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
    meant = {name: _meant(entries, name) for name in args.names}
    shown = [entry for entry in entries if not meant or any(entry in named for named in meant.values())]
    shown = _supporting(shown, args.supports)
    if args.json:
        output.print_json(map(_data, shown))
        return 0
    # What is asked for by its own name is told as a whole.
    whole = {named[0].name for name, named in meant.items() if len(named) == 1 or named[0].name == name}
    kind = None
    for entry in shown:
        if entry.kind != kind:
            kind = entry.kind
            print(f"{kind}\n{'=' * len(kind)}\n{_folded('in ' + ', '.join(entry.place), 3)}\n")
        print("\n".join(_lines(entry, entry.name in whole)) + "\n")
    return 0


def _meant(entries: Sequence[Entry], name: str) -> list[Entry]:
    """The part of a name, or the parts of a kind."""
    exact = [entry for entry in entries if entry.name == name]
    found = exact or [entry for entry in entries if _same(entry.kind, name) or _same(entry.name, name)]
    if found:
        return found
    kinds = list(dict.fromkeys(entry.kind for entry in entries))
    hint = nearest(name, [*kinds, *(entry.name for entry in entries)]) or _spoken_of(entries, name)
    raise InputError(f"There is no kind of part and no part named {name!r}.{hint} Kinds: {', '.join(kinds)}.")


def _same(word: str, name: str) -> bool:
    """Whether a kind or part is meant: ``Feed forward`` is also feed_forward, and ``MambaSpec`` Mamba."""
    one, other = (re.sub(r"[ _-]|spec$", "", text.lower()) for text in (word, name))
    return one == other


def _spoken_of(entries: Sequence[Entry], word: str) -> str:
    """Where a word that names no part is to be found."""
    import dataclasses

    from mmformer.catalogue import PATHS

    fields = [f"{path}.{field.name}" for spec, path in PATHS.items() for field in dataclasses.fields(spec)]
    options = [path for path in fields if path.endswith(f".{word}")]
    options += [f"{entry.name}.{word}" for entry in entries if any(option.name == word for option in entry.options)]
    if options:
        return f" It is an option: {', '.join(options)}."
    said = [(entry.name, f"{entry.name} {entry.what} {entry.more} {entry.source}") for entry in entries]
    found = [name for name, text in said if word and re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE)]
    return f" {', '.join(found)} {'speaks' if len(found) == 1 else 'speak'} of it." if found else ""


def _supporting(entries: Sequence[Entry], abilities: str | None) -> list[Entry]:
    from mmformer.catalogue import ABILITIES

    wanted = [word.strip() for word in abilities.split(",")] if abilities is not None else []
    for word in wanted:
        if word not in ABILITIES:
            raise InputError(f"--supports {word}: abilities are {', '.join(ABILITIES)}.{nearest(word, ABILITIES)}")
    found = [entry for entry in entries if set(wanted) <= set(entry.supports)]
    if not found:
        single = list(dict.fromkeys(ability for entry in entries for ability in entry.supports))
        can = f"support {', '.join(single)}, each some of it" if single else "have no abilities, and hinder none"
        raise InputError(f"--supports {abilities}: none of these parts supports all of that. They {can}.")
    return found


def _lines(entry: Entry, whole: bool) -> Iterator[str]:
    yield entry.name
    yield _folded(f"    {entry.what.replace('``', '')}", 4)
    if whole and entry.more:
        yield _folded(f"    {entry.more.replace('``', '')}", 4)
    rows = [("cost", entry.cost), ("supports", ", ".join(entry.supports))]
    rows += [("needs", f"a mixer with {', '.join(entry.needs)}" if entry.needs else ""), ("from", entry.source)]
    if not whole:
        options = ", ".join(f"{option.name}: {_told(option.default)}" for option in entry.options)
        rows.append(("options", options))
    yield from (_folded(f"    {name:<10}{text}", 14) for name, text in rows if text)
    if whole and entry.options:
        yield "    options"
        for option in entry.options:
            yield _folded(f"        {option.name}: {_told(option.default)}", 12)
            yield _folded(f"            {option.meaning.replace('``', '')}", 12)


def _folded(text: str, indent: int) -> str:
    """A line as a terminal shows it best; elsewhere, where a program may read it, it stays one line."""
    if not sys.stdout.isatty():
        return text
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, shutil.get_terminal_size().columns, subsequent_indent=" " * indent, **options)


def _told(default: Any) -> str:
    """A default as a run file has it; of parts, the names."""
    import json

    from mmformer.config import to_data

    if isinstance(default, tuple):
        return f"[{', '.join(map(_told, default))}]"
    data = to_data(default)
    return str(data["class_path"]) if isinstance(data, dict) else json.dumps(data, ensure_ascii=False).strip('"')


def _data(entry: Entry) -> dict[str, Any]:
    from mmformer.config import to_data

    options = {option.name: {"default": to_data(option.default), "meaning": option.meaning} for option in entry.options}
    return {**entry._asdict(), "options": options}
