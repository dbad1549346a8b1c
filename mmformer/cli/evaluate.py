"""``mmformer evaluate``: a bundle's scores on data of one's own, with what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.cli.options import Words

OPTIONS: dict[str, tuple[bool, str]] = {
    # name: (whether it has a value, what it does)
    "output": (True, "a folder for scores, the recipe, tables of samples and classes, and report.html"),
    "overwrite": (False, "replace the evaluation that is in --output"),
    "device": (True, "cpu, cuda, ... (default: cpu)"),
    "processes": (True, "how many share the work, on GPUs each with one; the scores are the same (default: 1)"),
    "json": (False, "print JSON instead of a table"),
    "print_config": (False, "print the whole recipe, and do nothing else"),
}
"""The command's own options."""

DESCRIPTION = """\
Measure BUNDLE (the folder bundle/ that a run's output ends with) on a split of your own data: a folder of shards
(--data SHARDS), or all that a recipe says (--config EVAL.yaml, whose fields are options too). Pictures, sounds and
texts are read as the bundle does. Without metrics, what can be measured without a choice is.
"""

EXAMPLES = """\
examples:
  mmformer evaluate BUNDLE --data data/emoji --data.text json:names.en
  mmformer evaluate BUNDLE --data photos --data.references json:captions --output evaluations/photos
  mmformer evaluate BUNDLE --config EVAL.yaml --processes 2 --json
"""


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer evaluate BUNDLE WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    from mmformer.cli.options import merged, split
    from mmformer.config import parse, to_yaml
    from mmformer.evaluation.recipe import RecipeSpec

    if any(word in ("-h", "--help") for word in words):
        return _help()
    bundle, rest = _bundle(words)
    given = _with_source(split(rest, RecipeSpec, {name: valued for name, (valued, _) in OPTIONS.items()}))
    if not given.settings:
        raise InputError("evaluate needs --data SHARDS or --config EVAL.yaml; mmformer evaluate --help says more.")
    recipe = parse(RecipeSpec, merged(RecipeSpec, given.settings), "")
    if "print_config" in given.own:
        print(to_yaml(recipe), end="")
        return 0

    from mmformer.cli.output import progress
    from mmformer.cli.report import print_scores
    from mmformer.evaluation.measure import Measurement
    from mmformer.evaluation.results import check_folder, write_results

    output = Path(given.own["output"]) if "output" in given.own else None
    if output is not None:
        check_folder(output, "overwrite" in given.own)
    elif "overwrite" in given.own:
        raise InputError("--overwrite replaces what is in --output, which is not given.")
    processes, as_json = _number(given.own.get("processes", "1")), "json" in given.own
    measurement = Measurement(bundle, recipe, given.own.get("device", "cpu"))
    with progress("evaluating", len(measurement), recipe.data.batch_size) as done:
        measured = measurement.run(processes, done)
    if output is not None:
        write_results(output, measured)
    print_scores(measured.scores, f"{recipe.data.source}, split {recipe.data.split}", as_json)
    if output is not None and not as_json:
        print(f"\nWhat stands behind them: {output / 'report.html'}")
    return 0


def _bundle(words: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The bundle, which is the first word, and the rest."""
    if not words or words[0].startswith("-"):
        raise InputError("evaluate needs the folder of a bundle first: mmformer evaluate BUNDLE --data SHARDS.")
    return Path(words[0]), words[1:]


def _with_source(given: Words) -> Words:
    """``--data SHARDS`` is short for ``--data.source SHARDS``; a mapping or a YAML file stays what it is."""
    settings = [
        ("data.source", text) if name == "data" and not _is_yaml(text) else (name, text)
        for name, text in given.settings
    ]
    return given._replace(settings=settings)


def _is_yaml(text: str) -> bool:
    return text.lstrip().startswith("{") or Path(text).suffix in (".yaml", ".yml")


def _number(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise InputError(f"--processes must be a whole number, at least 1, but is '{word}'.")
    return int(word)


def _help() -> int:
    import argparse

    from mmformer.config import make_parser
    from mmformer.evaluation.recipe import RecipeSpec

    parser = make_parser(
        RecipeSpec,
        prog="mmformer evaluate BUNDLE",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        print_config=None,
    )
    for name, (valued, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", help=text, action="store" if valued else "store_true")
    print(parser.format_help(), end="")
    return 0
