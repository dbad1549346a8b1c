"""A zero-shot classifier of class names and templates beside open_clip's builder: weights copied, equal weights.

    python -m benchmarks.classifier [--classes 1000]

The work is the same for each prompt, so a row has 25 of ImageNet's 1,000 classes, with all 80 templates. With
``--classes``, so many are built once in the order A B B A, which takes the best part of an hour for all of them:
``benchmarks/results/classifier/PROCESSOR.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.beside import THREADS, Row, Work, main, quiet
from benchmarks.machine import describe, kind
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import predictor
from mmformer.evaluation.zero_shot import embed_classes

RESULTS = Path("benchmarks/results/classifier")
MODEL, CLASSES, TEMPLATES = "ViT-S-32-alt", 25, 80
ALLOWED = 1e-4
"""Difference of the classifiers' weights, over the largest of the peer's."""

Build = Callable[[], Tensor]
"""Makes a classifier's weights: C E."""


def builders(name: str, classes: int) -> tuple[Build, Build]:
    """Ours and the peer's, of the same model and prompts."""
    import open_clip

    reference, opened = predictor(open_clip_model(name))
    encoder, tokenizer = opened.reader.text_encoders["text"], open_clip.tokenizer.SimpleTokenizer()
    names: Any = open_clip.IMAGENET_CLASSNAMES[:classes]
    templates: Any = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(names) == classes
    assert len(templates) == TEMPLATES

    def ours() -> Tensor:
        with torch.inference_mode():
            alone = [[each] for each in names]
            return embed_classes(opened.model, encoder, alone, templates, "text", torch.device("cpu"))

    def theirs() -> Tensor:
        made: Tensor = open_clip.build_zero_shot_classifier(reference, tokenizer, names, templates).T
        return made

    return ours, theirs


def built(name: str, classes: int) -> Work:
    """The weights of a classifier by both."""
    ours, theirs = builders(name, classes)
    return Work(ours, theirs, _difference(ours(), theirs()))


def whole(name: str, classes: int) -> str:
    """Markdown: both build so many classes, A B B A, after a few by each.

    Raises:
        SystemExit: they are not equal.
    """
    for build in builders(name, CLASSES):
        build()
    both = builders(name, classes)
    seconds: tuple[list[float], list[float]] = ([], [])
    made: dict[int, Tensor] = {}
    for which in (0, 1, 1, 0):
        began = time.perf_counter()
        made[which] = both[which]()
        seconds[which].append(time.perf_counter() - began)
        print(f"{('ours', 'theirs')[which]}: {seconds[which][-1]:.1f} s", file=sys.stderr, flush=True)
    difference = _difference(made[0], made[1])
    if not difference <= ALLOWED:
        raise SystemExit(f"The classifiers differ by {difference:.1e}, more than {ALLOWED:g}.")
    first, second = (b / a for a, b in zip(*seconds, strict=True))
    ours, theirs = (" and ".join(f"{each:,.0f}" for each in side) for side in seconds)
    return (
        f"# A zero-shot classifier of {classes:,} classes × {TEMPLATES} templates\n\n"
        f"`python -m benchmarks.classifier --classes {classes}`. {describe()}; {THREADS} threads; float32, the text "
        f"tower of {name}, A B B A.\n\n"
        "| mmformer, s | open_clip, s | times as fast | weights differ by |\n|---|---|---|---|\n"
        f"| {ours} | {theirs} | {first:.2f} and {second:.2f} | {difference:.0e} |\n"
    )


def _difference(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).abs().max() / other.abs().max())


ROWS = [
    Row(
        "classifier",
        f"zero-shot classifier by the text tower of {MODEL}, {CLASSES} classes × {TEMPLATES} templates",
        "open_clip_torch",
        CLASSES * TEMPLATES,
        "prompts",
        3.0,
        ALLOWED,
        partial(built, MODEL, CLASSES),
        "prompts are as long as they are, not 77 ids",
    )
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--classes", type=int)
    arguments, rest = parser.parse_known_args()
    if rest or arguments.classes is None:
        main(ROWS)
    elif not 1 <= arguments.classes <= 1000:
        raise SystemExit(f"--classes is {arguments.classes}; ImageNet has 1,000: 1 to 1000 of them can be asked for.")
    else:
        quiet()
        torch.manual_seed(0)
        text = whole(MODEL, arguments.classes)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{kind()}.md").write_text(text, encoding="utf-8")
        print(text)
