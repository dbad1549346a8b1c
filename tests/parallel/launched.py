"""A run with every kind of loss: started as a user would start it, or more quickly (see ``several``)."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch
from safetensors.torch import load_file
from tiny import COLOURS, VOCABULARY, labels, tiny_model, tiny_run

from mmformer.evaluation.neighbours import NeighboursSpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.head import ContrastiveHeadSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.pool import LastPoolSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.average import EMASpec
from mmformer.training.run import EvaluationSpec, RunSpec

ROOT = Path(__file__).parents[2]


def everything(shards: Path) -> RunSpec:
    """Softmax and sigmoid contrast, a classification head, a decoder, averaged weights, clipping, evaluation."""
    model = tiny_model(classes=len(COLOURS))
    text = dataclasses.replace(model.encoders["text"], pool=LastPoolSpec())  # which is read alone
    layer = dataclasses.replace(model.stacks["text"].layer, cross=AttentionSpec(2))
    words = TextTokensSpec(VOCABULARY, context_length=16)
    model = dataclasses.replace(
        model,
        stacks={**model.stacks, "writer": StackSpec(16, 1, layer)},
        encoders={**model.encoders, "text": text},
        decoders={"caption": DecoderSpec(words, "writer", {"image": "cross"})},
        heads={**model.heads, "sigmoid": ContrastiveHeadSpec(0.1, None, -10.0)},
    )
    run = tiny_run(shards, data={"labels": labels(shards)}, model=model, ema=EMASpec(0.9))
    return dataclasses.replace(
        run,
        objectives={
            "contrastive": ContrastiveSpec(),
            "sigmoid": SigmoidContrastiveSpec(0.3, head="sigmoid"),
            "caption": CaptioningSpec(0.5),
            "colour": ClassificationSpec(head="colour"),
        },
        trainer=dataclasses.replace(run.trainer, gradient_clip_val=0.5, log_every_n_steps=1),
        # 8 samples are 3 batches: two processes fill up their last turn. Of 32 to learn from, it is 11.
        evaluation=EvaluationSpec({**run.evaluation.metrics, "neighbours": NeighboursSpec("colour")}, every_steps=3),
    )


def start(file: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmformer", "fit", "--config", str(file), "--output", str(output), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def fit(file: Path, output: Path, *words: str) -> str:
    """The same to its end, in processes that are made more quickly; what they said."""
    log = output.with_name(f"{output.name}.log")
    log.unlink(missing_ok=True)
    code = several.command(log, ("fit", "--config", str(file), "--output", str(output), *words))
    said = log.read_text(encoding="utf-8")
    assert code == 0, said
    return said


def rewound(run: Path, step: int, to: Path) -> Path:
    """A copy of a run's folder as it was after some step."""
    shutil.copytree(run, to)
    for folder in (to / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    shutil.rmtree(to / "bundle")
    return to


def rows(output: Path) -> list[dict[str, float]]:
    with (output / "metrics.csv").open(encoding="utf-8") as table:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(table)]


def assert_alike(one: Path, other: Path) -> None:
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # A part's gradient may be small beside the terms that it is a sum of, a vocabulary's say.
            close = 1e-4 if a["step"] > 1 or "gradient_norm/" in name else 2e-6
            assert b[name] == pytest.approx(a[name], rel=close, abs=1e-6), (a["step"], name)
    first, second = (load_file(output / "bundle" / "model.safetensors") for output in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(second[name], value, atol=2e-4), name
    assert {p.name for p in (one / "bundle").iterdir()} == {p.name for p in (other / "bundle").iterdir()}
