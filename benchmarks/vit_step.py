"""Forward passes and updates of vision transformers beside timm's: weights copied, equal outputs.

    python -m benchmarks.vit_step

An update is forward, cross-entropy, backward and AdamW; timm's side has PyTorch's own AdamW, as its training script.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import updates
from benchmarks.beside import Row, Work, main
from benchmarks.systems.case import timm_model
from benchmarks.systems.imported import imported
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.objective import Objective
from mmformer.training.accumulate import accumulate
from mmformer.types import Batch

SMALL: dict[str, Any] = {"depth": 12}
BECAUSE = "of the last layer, what nobody reads is not computed"
BETAS, EPS = (0.9, 0.999), 1e-8
TINY: dict[str, Any] = {"depth": 6, "img_size": 64, "patch_size": 8}


def forward(name: str, options: dict[str, Any], pictures: int, size: int, half: bool) -> Work:
    """Logits of a batch, in evaluation."""
    theirs, model = imported(timm_model(name, **options))
    (head,) = model.heads
    image = torch.randn(pictures, 3, size, size)
    batch = Batch((), {}, image)

    def ours() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits: Tensor = model(batch, tokens=False).logits[head]
            return logits

    def its() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits: Tensor = theirs(image)
            return logits

    mine, other = ours().float(), its().float()
    return Work(ours, its, float((mine - other).abs().max() / other.abs().max()))


def update(name: str, options: dict[str, Any], pictures: int, size: int, half: bool) -> Work:
    """One of each, of the same batch; the losses of the first few are compared."""
    theirs, model = imported(timm_model(name, **options))
    theirs.train()
    model.train()
    (head,) = model.heads
    image, labels = torch.randn(pictures, 3, size, size), torch.randint(1000, (pictures,))
    batch = Batch((), {head: labels}, image)
    objectives: dict[str, Objective] = {"classes": ClassificationSpec(head=head).build()}
    optimizer, other = updates.ours(model, BETAS, EPS), updates.theirs(theirs, BETAS, EPS)

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def ours() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = accumulate(model, objectives, {"classes": 1.0}, batch, 1, backward)
        optimizer.step()
        return float(losses["loss"])

    def its() -> float:
        other.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(theirs(image), labels)
        backward(loss)
        other.step()
        return float(loss.detach())

    return Work(ours, its, updates.apart(ours, its))


def _rows() -> list[Row]:
    rows = []
    for dtype, bound in ((torch.float32, 1.0), (torch.bfloat16, 1.25)):
        half, precision = dtype == torch.bfloat16, "fp32" if dtype == torch.float32 else "bf16"
        for kind, make in (("forward", forward), ("update", update)):
            rows.append(
                Row(
                    f"vit_s16_{kind}_{precision}",
                    f"ViT-S/16, {'a forward pass' if kind == 'forward' else 'an update'} of 16 pictures, {precision}",
                    "timm",
                    16,
                    "img",
                    bound,
                    2e-2 if half else 1e-5,
                    partial(make, "vit_small_patch16_224", SMALL, 16, 224, half),
                    BECAUSE if kind == "forward" else f"{BECAUSE}; one kernel for AdamW",
                    dtype,
                )
            )
        rows.append(
            Row(
                f"vit_64px_update_{precision}",
                f"ViT of 6 layers, 384 wide, an update of 256 pictures of 64 px, {precision}",
                "timm",
                256,
                "img",
                1.15,
                2e-2 if half else 1e-5,
                partial(update, "vit_small_patch16_224", TINY, 256, 64, half),
                f"{BECAUSE}; one kernel for AdamW",
                dtype,
            )
        )
    return rows


ROWS = _rows()

if __name__ == "__main__":
    main(ROWS)
