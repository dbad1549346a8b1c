"""Argument parsing for the commands that take no run file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmformer.errors import InputError, nearest

AddParser = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError: one message, without the usage in front of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # No abbreviations: an option added later would change what a script means.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        hint = nearest(unknown[1].split("=")[0], options) if unknown else ""
        raise InputError(f"{message}.{hint} {self.prog} --help says what it takes.")


def run(add_parser: AddParser, command: str, words: Sequence[str]) -> int:
    """Parse a command's words and call what its parser names as ``run``.

    Raises:
        InputError: wrong words.
    """
    parser = Parser(prog="mmformer")
    add_parser(parser.add_subparsers(parser_class=Parser))
    arguments, unknown = parser.parse_known_args([command, *words])
    if unknown:
        own = parser._subparsers._group_actions[0].choices[command] if parser._subparsers else parser  # type: ignore[index]
        own.error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = arguments.run(arguments)
    return code
