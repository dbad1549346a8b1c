"""How long commands take to start beside their peers': help, a printed config, the first update of a small model.

    python -m benchmarks.starting

Each call is a process of its own; what it prints or computes is not compared, for the models are alike in size alone.
The peers are open_clip's training script, its model, and a bare LightningCLI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.beside import Row, Work, main

MMFORMER = [str(Path(sys.executable).with_name("mmformer"))]
CONFIG = "configs/runs/emoji_quickstart.yaml"
CLI = (
    "from pytorch_lightning.cli import LightningCLI;"
    "from pytorch_lightning.demos.boring_classes import BoringDataModule, DemoModel;"
    "LightningCLI(DemoModel, BoringDataModule)"
)
HELP = """
import torch, open_clip
from open_clip_train.params import parse_args
parse_args(["--help"])
"""
"""What open_clip's training script does, but for its readers of data, which ask for pandas."""

STEP = """
import torch
from mmformer.config import parse, read_yaml
from mmformer.models.model import ModelSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.types import Batch, Text
file = "configs/models/emoji_trimodal.yaml"
model = parse(ModelSpec, read_yaml(file), file).build()
optimizer = AdamWSpec().build(model)
objectives = {"contrastive": ContrastiveSpec(same_caption_positive=False).build()}
text = Text(torch.randint(5, 500, (64, 12)), torch.full((64,), 12))
batch = Batch((), {}, torch.randn(64, 3, 32, 32), text)
accumulate(model, objectives, {"contrastive": 1.0}, batch, 1, lambda loss: loss.backward())
optimizer.step()
"""
OPEN_CLIP_STEP = """
import torch, open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
picture = CLIPVisionCfg(layers=2, width=128, head_width=32, patch_size=8, image_size=32)
model = CLIP(128, picture, CLIPTextCfg(context_length=12, vocab_size=1024, width=128, heads=4, layers=2))
optimizer = torch.optim.AdamW(model.parameters())
made = model(torch.randn(64, 3, 32, 32), torch.randint(5, 500, (64, 12)))
open_clip.ClipLoss()(*made[:3]).backward()
optimizer.step()
"""


def run(command: list[str]) -> None:
    """A command that is to succeed; what it prints is left out."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")


def started(ours: list[str], theirs: list[str]) -> Work:
    """Both, from nothing."""
    mine: Callable[[], None] = partial(run, ours)
    return Work(mine, partial(run, theirs), None)


PYTHON = [sys.executable, "-c"]
ROWS = [
    Row(f"starting_{name}", what, peer, 1, "starts", bound, 0.0, partial(started, ours, theirs), because, dtype=None)
    for name, what, peer, bound, ours, theirs, because in (
        (
            "help",
            "`--help`",
            "open_clip_torch",
            None,
            [*MMFORMER, "--help"],
            [*PYTHON, HELP],
            "nothing is imported that is not needed",
        ),
        (
            "print_config",
            "`fit --config … --print_config`",
            "pytorch-lightning",
            1 / 0.6,
            [*MMFORMER, "fit", "--config", CONFIG, "--print_config"],
            [*PYTHON, CLI, "fit", "--print_config"],
            "specs are read without Lightning",
        ),
        (
            "first_step",
            "import to the first update of the quickstart's model, without data; a model of like size there",
            "open_clip_torch",
            1 / 0.8,
            [*PYTHON, STEP],
            [*PYTHON, OPEN_CLIP_STEP],
            "nothing is imported that is not needed",
        ),
    )
]

if __name__ == "__main__":
    main(ROWS)
