"""``mmformer fit``, ``find-lr``, ``validate`` and ``test``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmformer.cli.running import Options, own_options, print_help, run_spec, wants_help
from mmformer.errors import InputError

OPTIONS: Options = {
    # name: (whether it has a value, what it does, the commands that have it)
    "output": (
        True,
        "the run's folder (default for a NAME.yaml: runs/NAME of fit, runs/NAME-find-lr of find-lr)",
        ("fit", "find-lr", "validate", "test"),
    ),
    "resume": (False, "go on from the last whole checkpoint in --output", ("fit",)),
    "continue": (False, "the same where there is one, else begin: for what starts a run again and again", ("fit",)),
    "overwrite": (False, "replace what a former run left in --output", ("fit",)),
    "print_config": (False, "print the whole configuration, and do nothing else", ("fit",)),
    "lowest": (True, "the learning rate that is tried first (default: 1e-6)", ("find-lr",)),
    "highest": (True, "and the last (default: 1)", ("find-lr",)),
    "updates": (True, "how many are tried (default: 100)", ("find-lr",)),
    "device": (True, "cpu, cuda, ... (default: cpu)", ("validate", "test")),
    "json": (False, "print JSON instead of a table", ("validate", "test")),
}
"""The commands' own options."""

DESCRIPTIONS = {
    "fit": (
        "Train a model. Every field of the YAML file can be set as a dotted option too. Files under configs/ and "
        "tokenizers/ that are not in the folder you call this in are those that come with mmformer; mmformer init "
        "starts a run file of your own."
    ),
    "find-lr": "Try learning rates, and suggest one. Every field of the YAML file can be set as a dotted option too.",
    "validate": "Measure the bundle of a run on its validation split.",
    "test": "Measure the bundle of a run on its test split.",
}


def run(command: str, words: Sequence[str]) -> int:
    commands = {"fit": fit, "find-lr": find_lr}
    return commands[command](words) if command in commands else measure(command, words)


def fit(words: Sequence[str]) -> int:
    from mmformer.cli.options import split
    from mmformer.config import to_yaml
    from mmformer.training.run import RunSpec, default_output

    if wants_help(words):
        return print_help("fit", DESCRIPTIONS["fit"], OPTIONS, words)
    given = split(words, RunSpec, own_options(OPTIONS, "fit"))
    # A run that is replaced says its own configuration too: it is read here, before anything is removed.
    spec = run_spec("fit", given)
    if "print_config" in given.own:
        print(to_yaml(spec), end="")
        return 0
    if "output" not in given.own and not given.files:
        raise InputError("fit needs --output DIR, for without --config FILE the run has no name.")
    output = Path(given.own.get("output") or default_output(given.files[-1]))

    from mmformer.cli.report import print_end, program
    from mmformer.training.fit import fit as start

    resume, overwrite = _resumes(given.own, output), "overwrite" in given.own
    # What --continue begins anew had come to no checkpoint: its best model so far is made again.
    overwrite |= "continue" in given.own and not resume and not (output / "bundle").exists()
    try:
        result = start(spec, output, resume=resume, overwrite=overwrite)
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
        print_end(spec, output, result.scores, result.cards, result.taken)
    return 0


def _resumes(own: Mapping[str, str], output: Path) -> bool:
    """Whether a run goes on from a checkpoint; of several processes, what the first one finds counts.

    Raises:
        InputError: --continue beside an option that says the one or the other.
    """
    if "continue" not in own:
        return "resume" in own
    if other := next((name for name in ("resume", "overwrite") if name in own), None):
        raise InputError(f"--continue goes on where it can, and begins elsewhere: leave --{other} out, or --continue.")
    from mmformer.training.checkpoint import whole_checkpoints

    return bool(whole_checkpoints(output))


def find_lr(words: Sequence[str]) -> int:
    """A range test of the learning rate: a table, a picture, and a suggestion."""
    from mmformer.cli.options import split
    from mmformer.training.run import RunSpec, default_output

    if wants_help(words):
        return print_help("find-lr", DESCRIPTIONS["find-lr"], OPTIONS, words)
    given = split(words, RunSpec, own_options(OPTIONS, "find-lr"))
    spec = run_spec("find-lr", given._replace(own={}))
    limits: dict[str, Any] = {name: _number(given.own, name) for name in ("lowest", "highest") if name in given.own}
    if "updates" in given.own:
        limits["steps"] = round(_number(given.own, "updates"))
    named = default_output(given.files[-1])
    output = Path(given.own.get("output") or named.with_name(f"{named.name}-find-lr"))

    from mmformer.files import write_whole
    from mmformer.training.find_lr import RangeSpec, suggest, table
    from mmformer.training.find_lr import find_lr as test
    from mmformer.training.find_lr_chart import draw_trials

    trials = test(spec, RangeSpec(**limits))
    found = suggest(trials)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "find_lr.tsv", table(trials))
    draw_trials(trials, found).save(output / "find_lr.png", optimize=True)
    print(f"{len(trials)} learning rates were tried: {output / 'find_lr.tsv'}, drawn in {output / 'find_lr.png'}")
    if found is None:
        print("The loss falls at none of them: try others (--lowest, --highest), or more updates (--updates).")
    else:
        print(f"The loss falls fastest at {found:.2g}: begin with --optimizer.lr {found:.2g}, and a warm-up.")
    return 0


def _number(own: Mapping[str, str], name: str) -> float:
    """The number that an option has.

    Raises:
        InputError: it is none.
    """
    try:
        return float(own[name])
    except ValueError:
        raise InputError(f"--{name} must be a number, but is '{own[name]}'.") from None


def measure(command: str, words: Sequence[str]) -> int:
    """Scores of a run's bundle on one of its splits."""
    from mmformer.cli.options import split
    from mmformer.training.run import RunSpec

    if wants_help(words):
        return print_help(command, DESCRIPTIONS[command], OPTIONS, words)
    given = split(words, RunSpec, own_options(OPTIONS, command))
    if not given.own.get("output"):
        raise InputError(f"{command} needs --output DIR, the folder of a run.")
    for name, _ in given.settings:
        if name.partition(".")[0] not in ("config", "data", "evaluation"):
            raise InputError(f"--{name} is of training; {command} measures a bundle as it is. Leave it out.")
    spec = run_spec(command, given)
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
