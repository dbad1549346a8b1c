"""``mmformer fit``, ``validate`` and ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmformer.errors import InputError, nearest

if TYPE_CHECKING:
    from mmformer.cli.options import Words
    from mmformer.training.run import RunSpec

OPTIONS: dict[str, tuple[bool, str, tuple[str, ...]]] = {
    # name: (whether it has a value, what it does, the commands that have it)
    "output": (True, "the run's folder (fit's default: runs/NAME for a NAME.yaml)", ("fit", "validate", "test")),
    "resume": (False, "go on from the last whole checkpoint in --output", ("fit",)),
    "overwrite": (False, "replace what a former run left in --output", ("fit",)),
    "print_config": (False, "print the whole configuration, and do nothing else", ("fit",)),
    "device": (True, "cpu, cuda, ... (default: cpu)", ("validate", "test")),
    "json": (False, "print JSON instead of a table", ("validate", "test")),
}
"""The commands' own options."""

DESCRIPTIONS = {
    "fit": "Train a model. Every field of the YAML file can be set as a dotted option too.",
    "validate": "Measure the bundle of a run on its validation split.",
    "test": "Measure the bundle of a run on its test split.",
}


def run(command: str, words: Sequence[str]) -> int:
    return fit(words) if command == "fit" else measure(command, words)


def fit(words: Sequence[str]) -> int:
    from mmformer.cli.options import split
    from mmformer.config import to_yaml
    from mmformer.training.run import RunSpec, default_output

    if _wants_help(words):
        return _help("fit", words)
    given = split(words, RunSpec, _own("fit"))
    # A run that is replaced says its own configuration too: it is read here, before anything is removed.
    spec = _spec("fit", given)
    if "print_config" in given.own:
        print(to_yaml(spec), end="")
        return 0
    if "output" not in given.own and not given.files:
        raise InputError("fit needs --output DIR, for without --config FILE the run has no name.")
    output = Path(given.own.get("output") or default_output(given.files[-1]))

    from mmformer.cli.report import print_end, program
    from mmformer.training.fit import fit as start

    try:
        result = start(spec, output, resume="resume" in given.own, overwrite="overwrite" in given.own)
    except KeyboardInterrupt:
        from mmformer.training.processes import is_first

        if not is_first():
            return 130
        print(f"\nInterrupted. {program()} fit --output {output} --resume goes on from the last checkpoint, if any.")
        raise
    except OSError as error:
        error.filename = error.filename or str(output)  # a full disk names no file
        raise
    if result is not None:
        print_end(spec, output, result.scores, result.cards)
    return 0


def measure(command: str, words: Sequence[str]) -> int:
    """Scores of a run's bundle on one of its splits."""
    from mmformer.cli.options import split
    from mmformer.training.run import RunSpec

    if _wants_help(words):
        return _help(command, words)
    given = split(words, RunSpec, _own(command))
    if not given.own.get("output"):
        raise InputError(f"{command} needs --output DIR, the folder of a run.")
    for name, _ in given.settings:
        if name.partition(".")[0] not in ("config", "data", "evaluation"):
            raise InputError(f"--{name} is of training; {command} measures a bundle as it is. Leave it out.")
    spec = _spec(command, given)
    wanted = {"validate": "validation", "test": "test"}[command]
    name = getattr(spec.data, wanted)
    if name is None or not spec.evaluation.metrics:
        missing = f"data.{wanted} names no split" if name is None else "evaluation.metrics names nothing to measure"
        raise InputError(f"There is nothing to {command}: {missing}.")

    from mmformer.cli.report import print_scores
    from mmformer.training.fit import score_bundle

    scores = score_bundle(spec, Path(given.own["output"]) / "bundle", name, given.own.get("device", "cpu"))
    print_scores(scores, f"split {name}", as_json="json" in given.own)
    return 0


def _spec(command: str, given: Words) -> RunSpec:
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
            raise InputError(f"{command} needs --config FILE; configs/runs/ has some to begin with.")
    return parse(RunSpec, merged(RunSpec, settings), "")


def _own(command: str) -> dict[str, bool]:
    return {name: valued for name, (valued, _, commands) in OPTIONS.items() if command in commands}


def _wants_help(words: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") or _class_help(word) for word in words)


def _class_help(word: str) -> bool:
    return word.startswith("--") and word.partition("=")[0].endswith(".help")


def _help(command: str, words: Sequence[str]) -> int:
    """What a command takes, or, for ``--KEY.help CLASS``, what a class does."""
    from jsonargparse import ArgumentError

    from mmformer.config import explain, make_parser
    from mmformer.schema import members
    from mmformer.spec import FAMILIES
    from mmformer.training.run import RunSpec

    parser = make_parser(RunSpec, prog=f"mmformer {command}", description=DESCRIPTIONS[command], print_config=None)
    for name, (valued, text, commands) in OPTIONS.items():
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
