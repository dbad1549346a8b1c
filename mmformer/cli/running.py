"""What the commands that read run files have in common: their words to a run, and their help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmformer.errors import InputError, nearest

if TYPE_CHECKING:
    from mmformer.cli.options import Words
    from mmformer.training.run import RunSpec

Options = Mapping[str, tuple[bool, str, tuple[str, ...]]]
"""Name -> whether it has a value, what it does, the commands that have it."""


def run_spec(command: str, given: Words) -> RunSpec:
    """The run that words describe. A run that is there says its own: --output DIR alone stands for DIR/config.yaml."""
    from mmformer.cli.options import merged
    from mmformer.config import parse
    from mmformer.schema import missing
    from mmformer.training.run import RunSpec

    settings, output = list(given.settings), given.own.get("output")
    if not given.files:
        saved = Path(output or "") / "config.yaml"
        if output and saved.is_file():
            settings.insert(0, ("config", str(saved)))
        elif missing(RunSpec, {name.partition(".")[0]: None for name, _ in settings}):
            merged(RunSpec, [setting for setting in settings if "." not in setting[0]])  # what is wrong in itself
            if output:
                raise InputError(
                    f"{output}: there is no run in this folder (no config.yaml): name one, or --config FILE."
                )
            raise InputError(
                f"{command} needs --config FILE: mmformer init DIR writes one, and configs/runs/ has some to begin "
                "with."
            )
    return parse(RunSpec, merged(RunSpec, settings), "")


def own_options(options: Options, command: str) -> dict[str, bool]:
    """A command's own options, and whether each has a value: what ``options.split`` takes."""
    return {name: valued for name, (valued, _, commands) in options.items() if command in commands}


def wants_help(words: Sequence[str]) -> bool:
    """Whether a command is asked for its help, or for that of one of its classes."""
    return any(word in ("-h", "--help") or _class_help(word) for word in words)


def _class_help(word: str) -> bool:
    return word.startswith("--") and word.partition("=")[0].endswith(".help")


def print_help(command: str, description: str, options: Options, words: Sequence[str]) -> int:
    """Print what a command takes, or, for ``--KEY.help CLASS``, what a class does."""
    from jsonargparse import ArgumentError

    from mmformer.config import explain, make_parser
    from mmformer.schema import members
    from mmformer.spec import FAMILIES
    from mmformer.training.run import RunSpec

    parser = make_parser(RunSpec, prog=f"mmformer {command}", description=description, print_config=None)
    for name, (valued, text, commands) in options.items():
        if command in commands:
            parser.add_argument(f"--{name}", help=text, action="store" if valued else "store_true")
    ask = ["--help"]
    if "-h" not in words and "--help" not in words:
        place = next(place for place, word in enumerate(words) if _class_help(word))
        key, _, name = words[place].partition("=")
        name = name or next(iter(words[place + 1 : place + 2]), "")
        # The parser would import whatever is named here.
        own = {cls.__name__: cls for base in FAMILIES for cls in members(base)}
        if name and name not in own:
            raise InputError(f"{key}: there is no spec '{name}'.{nearest(name, own)}")
        ask = [key, name] if name else [key]
    try:
        parser.parse_args(ask)
    except ArgumentError as error:
        raise InputError(explain(error)) from error
    return 0
