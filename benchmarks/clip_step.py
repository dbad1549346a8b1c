"""An update of a CLIP beside open_clip's: weights copied, equal losses; forward, backward and AdamW.

    python -m benchmarks.clip_step        (DATA=DIR, with multi30k/ as it was published, for captions of sentences)

open_clip's side is what its training script runs: texts padded to 77 ids, its loss, PyTorch's AdamW. Memory is the most
that a fresh process has, updating ViT-B-16 with batches of 32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmformer
from benchmarks import updates
from benchmarks.beside import Row, Work, main, quiet
from benchmarks.captions import emoji_names, multi30k
from benchmarks.memory import peak
from benchmarks.peers import RETURNED
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import imported
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective
from mmformer.training.accumulate import accumulate
from mmformer.types import Batch, Text

BETAS, EPS = (0.9, 0.98), 1e-6


def inputs(captions: Callable[[int], list[str]], pictures: int) -> tuple[Tensor, Tensor]:
    """Pictures, and texts as open_clip reads them: B 77."""
    import open_clip

    return torch.randn(pictures, 3, 224, 224), open_clip.tokenizer.SimpleTokenizer()(captions(pictures))


def ours_of(model: Model, image: Tensor, ids: Tensor, half: bool) -> Callable[[], float]:
    """An update by us; texts are padded to the longest, in eights."""
    lengths = (ids != 0).sum(1)
    batch = Batch((), {}, image, Text(ids[:, : -(-int(lengths.max()) // 8) * 8], lengths))
    objectives: dict[str, Objective] = {"contrastive": ContrastiveSpec(same_caption_positive=False).build()}
    optimizer = updates.ours(model.train(), BETAS, EPS)

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def update() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = accumulate(model, objectives, {"contrastive": 1.0}, batch, 1, backward)
        optimizer.step()
        return float(losses["loss"])

    return update


def theirs_of(model: Any, image: Tensor, ids: Tensor, half: bool) -> Callable[[], float]:
    """An update by open_clip."""
    import open_clip

    optimizer = updates.theirs(model.train(), BETAS, EPS)
    loss_of: Any = open_clip.ClipLoss()

    def update() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_of(*model(image, ids)[:3])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return update


def update(name: str, pictures: int, captions: Callable[[int], list[str]], half: bool) -> Work:
    """One of each, of the same batch; the losses of the first few are compared."""
    reference, model = imported(open_clip_model(name))
    batch = inputs(captions, pictures)
    ours, theirs = ours_of(model, *batch, half), theirs_of(reference, *batch, half)
    return Work(ours, theirs, updates.apart(ours, theirs))


def memory(name: str, pictures: int) -> tuple[float, float]:
    """MiB at most of a fresh process that makes three updates of so many pictures and emoji's names, float32."""
    with tempfile.TemporaryDirectory() as folder:
        open_clip_model(name).save(Path(folder) / "in")
        import_model(f"open_clip:{folder}/in", Path(folder) / "bundle")
        ours, theirs = (_peak(whose, folder, pictures) for whose in ("ours", "theirs"))
    return ours, theirs


def _peak(whose: str, folder: str, pictures: int) -> float:
    command = [sys.executable, "-m", "benchmarks.clip_step", "--point", whose, folder, str(pictures)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **RETURNED})
    return float(told.stdout)


def _point(whose: str, folder: str, pictures: int) -> float:
    quiet()
    batch = inputs(emoji_names, pictures)
    if whose == "ours":
        step = ours_of(mmformer.load(f"{folder}/bundle").model, *batch, half=False)
    else:
        import open_clip

        step = theirs_of(open_clip.create_model(f"local-dir:{folder}/in"), *batch, half=False)
    for _ in range(3):
        step()
    return peak() / 2**20


def _rows(name: str, pictures: int, single: float, half: float) -> list[Row]:
    rows = []
    for texts, captions in (("emoji names", emoji_names), ("Multi30k", multi30k)):
        for dtype, bound, allowed in ((torch.float32, single, 1e-5), (torch.bfloat16, half, 1e-2)):
            precision = "fp32" if dtype == torch.float32 else "bf16"
            measured = name == "ViT-B-16" and captions is emoji_names and dtype == torch.float32
            rows.append(
                Row(
                    f"clip_step_{name}_{texts.split()[0]}_{precision}".lower().replace("-", "_"),
                    f"CLIP {name}, an update of {pictures}, captions: {texts}, {precision}",
                    "open_clip_torch",
                    pictures,
                    "samples",
                    bound,
                    allowed,
                    partial(update, name, pictures, captions, dtype == torch.bfloat16),
                    "texts are as long as they are, not 77 ids; of the last layers, what nobody reads is not "
                    "computed; one kernel for AdamW",
                    dtype,
                    partial(memory, name, 32) if measured else None,
                    0.8 if measured else None,
                    "an update of 32" if measured else "",
                )
            )
    return rows


ROWS = [*_rows("ViT-S-32-alt", 64, 1.3, 1.5), *_rows("ViT-B-16", 16, 1.15, 1.3)]

if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        print(_point(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main(ROWS)
