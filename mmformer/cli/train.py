"""``mmformer fit``, ``validate`` and ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    return fit(words) if command == "fit" else measure(command, words)


def fit(words: Sequence[str]) -> int:
    from mmformer.config import build, to_yaml
    from mmformer.training.run import RunSpec, default_output

    parser = _parser("fit", "Train a model. Every field of the YAML file can be set as a dotted option too.")
    parser.add_argument("--output", type=str | None, help="the run's folder (default: runs/NAME for a NAME.yaml)")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --output")
    parser.add_argument("--overwrite", action="store_true", help="remove what a former run left in --output")
    words = _with_saved_config(words)
    if not words:
        raise InputError("fit needs --config FILE; configs/runs/ has some to begin with.")
    if "--print_config" in words:
        namespace = _parse(parser, [word for word in words if word != "--print_config"], RunSpec)
        print(to_yaml(build(parser, namespace, RunSpec)), end="")
        return 0
    namespace = _parse(parser, words, RunSpec)
    output = namespace.output
    if output is None:
        if not namespace.config:
            raise InputError("fit needs --config FILE; configs/runs/ has some to begin with.")
        output = default_output(str(namespace.config[-1]))
    spec = build(parser, namespace, RunSpec)

    from mmformer.training.fit import fit as start

    try:
        scores = start(spec, Path(output), resume=namespace.resume, overwrite=namespace.overwrite)
    except KeyboardInterrupt:
        print(f"\nInterrupted. mmformer fit --output {output} --resume goes on from the last whole checkpoint, if any.")
        raise
    from mmformer.cli.report import print_end

    print_end(spec, Path(output), scores)
    return 0


def measure(command: str, words: Sequence[str]) -> int:
    """Scores of a run's bundle on one of its splits."""
    from mmformer.config import build
    from mmformer.training.run import RunSpec

    split = {"validate": "validation", "test": "test"}[command]
    parser = _parser(command, f"Measure the bundle of a run on its {split} split.")
    parser.add_argument("--output", type=str, help="the run's folder", required=True)
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    namespace = _parse(parser, _with_saved_config(words), RunSpec)
    spec = build(parser, namespace, RunSpec)
    name = getattr(spec.data, split)
    if name is None or not spec.evaluation.metrics:
        missing = f"data.{split} names no split" if name is None else "evaluation.metrics names nothing to measure"
        raise InputError(f"There is nothing to {command}: {missing}.")

    from mmformer.cli.report import print_scores
    from mmformer.training.fit import score_bundle

    scores = score_bundle(spec, Path(namespace.output) / "bundle", name, namespace.device)
    print_scores(scores, f"split {name}", as_json=namespace.json)
    return 0


def _parser(command: str, description: str) -> ArgumentParser:
    from mmformer.config import make_parser
    from mmformer.training.run import RunSpec

    return make_parser(RunSpec, prog=f"mmformer {command}", description=description)


def _parse(parser: ArgumentParser, words: Sequence[str], spec: type) -> Namespace:
    from mmformer.config import check_layout, explain, read_yaml

    for place, word in enumerate(words):
        name, equals, file = word.partition("=")
        if name == "--config" and (equals or place + 1 < len(words)):
            file = file if equals else words[place + 1]
            check_layout(spec, read_yaml(file), file, own=False)
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        raise InputError(explain(error, spec)) from error


def _with_saved_config(words: Sequence[str]) -> list[str]:
    """A run that is there already says its own configuration: --output DIR alone stands for DIR/config.yaml."""
    words = list(words)
    given = any(word == "--config" or word.startswith("--config=") for word in words)
    resumes = "--resume" in words or "--overwrite" not in words
    if given or "--output" not in words or not resumes:
        return words
    place = words.index("--output") + 1
    if place >= len(words):
        raise InputError("--output needs the name of a folder after it.")
    saved = Path(words[place]) / "config.yaml"
    if not saved.is_file():
        raise InputError(f"{words[place]}: there is no run in this folder (no config.yaml): name one, or use --config.")
    return ["--config", str(saved), *words]
