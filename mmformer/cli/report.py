"""What a person is shown at the end of a run."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mmformer.cli.inputs import SUFFIXES

if TYPE_CHECKING:
    from mmformer.evaluation.metric import Score
    from mmformer.training.intake import Taken
    from mmformer.training.run import RunSpec
    from mmformer.training.sheet import Card


def print_scores(scores: Mapping[str, Score], measured_on: str, as_json: bool = False) -> None:
    """Scores as a table, or as one JSON object of name -> {value, chance, unit}."""
    if as_json:
        print(json.dumps({name: score._asdict() for name, score in scores.items()}))
        return
    table = Table(title=f"Scores on {measured_on}", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right", style="dim")
    for name, score in scores.items():
        table.add_row(
            name.replace("/", "  ").replace("_to_", " → ").replace("_", " "),
            score.text,
            score.shown(score.chance),
        )
    Console().print(table)


def print_taken(run: RunSpec, output: Path, taken: Taken) -> None:
    """How much of the data was skipped, for which causes, and how many texts were cut."""
    if taken.skipped:
        number = sum(taken.skipped.values())
        print(
            f"{number:,} training samples were skipped, and others read instead; {output / 'skipped.tsv'} lists them:"
        )
        table = Table()
        table.add_column("cause")
        table.add_column("samples", justify="right")
        for cause, count in taken.skipped.items():
            table.add_row(cause, f"{count:,}")
        Console().print(table)
    for name, (read, cut) in taken.texts.items():
        if cut:
            most = run.model.text_encoders()[name].spec.context_length
            print(
                f"Of {read:,} texts that were read as {name}, {cut:,} ({100 * cut / read:.1f} %) were longer than the "
                f"model's context of {most} tokens and were cut: a larger context_length would take more of them."
            )


def print_end(
    run: RunSpec, output: Path, scores: Mapping[str, Score], cards: Sequence[Card] = (), taken: Taken | None = None
) -> None:
    """What was skipped, the scores, three captions, what the run has left, and what to type next."""
    if taken is not None:
        print_taken(run, output, taken)
    if scores:
        print_scores(scores, f"split {run.data.test}, which training never saw")
    captions = [card for card in cards if card.caption is not None][:3]
    if captions:
        print()
    for card in captions:
        print(f"It writes of {card.name or 'a picture'}: “{card.caption}”")
    print(f"\nThe model: {output / 'bundle'}")
    if cards:
        print(f"What it says of {len(cards)} pictures: {output / 'report.png'}")
    commands = next_commands(run, output)
    if commands:
        print("\nTry next:")
    for command in commands:
        print(f"  {program()} {command}")


def next_commands(run: RunSpec, output: Path) -> list[str]:
    """What can be done with a run's bundle, to be typed as it stands where the run left pictures to try it on."""
    bundle, folder = _word(output / "bundle"), output / "pictures"
    shown = _pictures(folder)
    labels = list(dict.fromkeys(path.stem.replace("_", " ") for path in shown))[:4]
    picture, pictures = (_word(shown[0]), _word(folder)) if shown else ("PICTURE.png", "FOLDER")
    read = {encoder.tokenizer.modality for encoder in run.model.encoders.values()}
    commands, heads = [], run.model.heads.values()
    if {"image", "text"} <= read and any(hasattr(head, "temperature") for head in heads):
        choices, query = (",".join(labels), labels[0]) if len(labels) > 1 else ("cat,dog,pizza", "a red heart")
        commands.append(f"classify {bundle} {picture} --labels {_quoted(choices)}")
        commands.append(f"retrieve {bundle} --images {pictures} {_quoted(query)}")
    elif sum(hasattr(head, "classes") and run.model.modalities_of(head.reads) == {"image"} for head in heads) == 1:
        commands.append(f"classify {bundle} {picture}")
    for reads, asked in (({"image"}, ""), ({"image", "text"}, ' --text "what is it?"')):
        # Where two decoders read the same, the command would have to name one.
        if sum(run.model.modalities_of(decoder.reads) == reads for decoder in run.model.decoders.values()) == 1:
            commands.append(f"caption {bundle} {pictures}{asked}")
    if run.data.test is not None and run.evaluation.metrics:
        commands.append(f"test --output {_word(output)}")
    return commands


def program() -> str:
    """This program as it was called, so that what is printed can be typed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "mmformer":
        return f"{_word(sys.orig_argv[0] or 'python')} -m mmformer"
    if called.name != "mmformer":
        return "mmformer"  # called from Python
    found = shutil.which("mmformer")
    return "mmformer" if found and Path(found).absolute() == called.absolute() else _word(called)


def _pictures(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in SUFFIXES["image"]]


def _word(path: str | Path) -> str:
    return shlex.quote(str(path))


def _quoted(text: str) -> str:
    return shlex.quote(text) if any(mark in text for mark in '"$`\\!') else f'"{text}"'
