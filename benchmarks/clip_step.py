"""An update of a CLIP beside open_clip's: weights copied, equal losses; forward, backward and AdamW.

    python -m benchmarks.clip_step        (DATA=DIR, with multi30k/ as it was published, for captions of sentences)

open_clip's side is what its training script runs: texts padded to 77 ids, its loss, PyTorch's AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.beside import Row, Work, main
from benchmarks.captions import emoji_names, multi30k
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import imported
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective
from mmformer.training.accumulate import accumulate
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.types import Batch, Text

BETAS, EPS, RATE = (0.9, 0.98), 1e-6, 1e-5


def update(name: str, pictures: int, captions: Callable[[int], list[str]], half: bool) -> Work:
    """One of each, of the same batch; the losses of the first are compared."""
    import open_clip

    reference, model = imported(open_clip_model(name))
    reference.train()
    model.train()
    ids = open_clip.tokenizer.SimpleTokenizer()(captions(pictures))  # B 77
    lengths = (ids != 0).sum(1)
    image = torch.randn(pictures, 3, 224, 224)
    batch = Batch((), {}, image, Text(ids[:, : -(-int(lengths.max()) // 8) * 8], lengths))
    objectives: dict[str, Objective] = {"contrastive": ContrastiveSpec(same_caption_positive=False).build()}
    optimizer = AdamWSpec(lr=RATE, betas=BETAS, eps=EPS).build(model)
    other = torch.optim.AdamW(reference.parameters(), lr=RATE, betas=BETAS, eps=EPS)
    loss_of: Any = open_clip.ClipLoss()

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def ours() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = accumulate(model, objectives, {"contrastive": 1.0}, batch, 1, backward)
        optimizer.step()
        return float(losses["loss"])

    def theirs() -> float:
        other.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_of(*reference(image, ids)[:3])
        loss.backward()
        other.step()
        return float(loss.detach())

    mine, its = ours(), theirs()
    return Work(ours, theirs, abs(mine - its) / its)


def _rows(name: str, pictures: int, single: float, half: float) -> list[Row]:
    rows = []
    for texts, captions in (("emoji names", emoji_names), ("Multi30k", multi30k)):
        for dtype, bound, allowed in ((torch.float32, single, 1e-5), (torch.bfloat16, half, 1e-2)):
            precision = "fp32" if dtype == torch.float32 else "bf16"
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
                    "texts are as long as they are, not 77 ids; one kernel for AdamW",
                    dtype,
                )
            )
    return rows


ROWS = [*_rows("ViT-S-32-alt", 64, 1.3, 1.5), *_rows("ViT-B-16", 16, 1.15, 1.3)]

if __name__ == "__main__":
    main(ROWS)
