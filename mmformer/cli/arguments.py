"""Argument parsing for the commands that take no run file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmformer.errors import InputError, nearest

AddParser = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError: one message, without the usage in front of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # No abbreviations: an option added later would change what a script means.
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, which does not remember what it read, as ``error`` has to."""
        self._words += args or []
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        hint = ""
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        elif "unrecognized arguments" in message or "are required" in message:
            # What is required is often there, under a mistyped name.
            options = [option for action in self._actions for option in action.option_strings]
            given = (word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--")
            for unknown in dict.fromkeys(word for word in given if word not in options):
                said = "" if unknown in message else f" There is no option {unknown}."
                hint += said + nearest(unknown, options)
        raise InputError(f"{message}.{hint} {self.prog} --help says what it takes.")


def check_replaces(target: Path, overwrite: bool, option: str = "--output") -> None:
    """Refuse a file to write that is there already.

    Raises:
        InputError: it is there, and ``overwrite`` is false.
    """
    if target.exists() and not overwrite:
        raise InputError(
            f"{option} {target}: this file is there already: replace it (--overwrite), or name another file."
        )


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder to write that has something in it.

    Raises:
        InputError: it has, and ``overwrite`` is false.
    """
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: replace it (--overwrite), or name another.")


def positive(text: str) -> int:
    """A whole number from 1, for an option's ``type``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, but is {text!r}")
    return int(text)


def run(add_parser: AddParser, command: str, words: Sequence[str]) -> int:
    """Parse a command's words and call what its parser names as ``run``.

    Raises:
        InputError: wrong words; what a spec refuses is named by the option that it came from.
    """
    parser = Parser(prog="mmformer")
    add_parser(parser.add_subparsers(parser_class=Parser))
    arguments, unknown = parser.parse_known_args([command, *words])
    if unknown:
        _innermost(parser, [command, *words]).error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = arguments.run(arguments)
    except InputError as error:
        field = re.match(r"[A-Z]\w+\.(\w+) must be ", str(error))
        option = f"--{field[1].replace('_', '-')}" if field else ""
        if option not in _innermost(parser, [command, *words])._option_string_actions:
            raise
        raise InputError(f"{option}{str(error)[field.end(1) :]}") from error  # type: ignore[union-attr]
    return code


def _innermost(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the last command among nested ones that words name."""
    for word in words:
        actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = next((action.choices[word] for action in actions if word in action.choices), parser)
    return parser
