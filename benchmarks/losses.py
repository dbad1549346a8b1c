"""Losses whose logits are too many to keep, beside what is usual: equal losses and gradients, forward and backward.

    python -m benchmarks.losses

Memory is by how much a pass raises the peak of a fresh process that has the inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.beside import Row, Work, main
from benchmarks.memory import peak, resident
from benchmarks.peers import RETURNED
from mmformer.nn.cross_entropy import linear_cross_entropy
from mmformer.objectives.contrastive import contrastive_loss
from mmformer.objectives.sigmoid import sigmoid_loss

CHUNK = 256
"""Tokens whose logits are held at once: a quarter of what decoders hold if nothing is said, and 5 % slower."""

Calls = tuple[Callable[[], Tensor], Callable[[], Tensor], tuple[Tensor, ...]]
"""Ours and the peer's loss, and what both have gradients of."""


def language() -> Calls:
    """The cross-entropy of 2,048 tokens over 32,000 pieces, from tokens 512 wide."""
    x = torch.randn(2048, 512, requires_grad=True)
    weight = (torch.randn(32000, 512) / 20).requires_grad_()
    target = torch.randint(32000, (2048,))
    return (
        lambda: linear_cross_entropy(x, weight, target, CHUNK).sum() / 2048,
        lambda: F.cross_entropy(x @ weight.T, target),
        (x, weight),
    )


def contrastive(kind: str) -> Calls:
    """The loss of 8,192 pairs of embeddings, 512 wide."""
    import open_clip

    x, y = (F.normalize(torch.randn(8192, 512), dim=-1).requires_grad_() for _ in range(2))
    scale, bias = torch.tensor([10.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    if kind == "softmax":
        peer: Any = open_clip.ClipLoss()
        return lambda: contrastive_loss(x, y, scale) / 8192, lambda: peer(x, y, scale), (x, y, scale)
    other: Any = open_clip.loss.SigLipLoss()
    places = torch.arange(8192)
    return (
        lambda: sigmoid_loss(x, y, scale, bias, places, places) / 8192,
        lambda: other(x, y, scale, bias),
        (x, y, scale, bias),
    )


def timed(make: Callable[[], Calls]) -> Work:
    """A pass and its gradients."""
    ours, theirs, inputs = make()

    def taken(call: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        loss = call()
        return (loss.detach(), *torch.autograd.grad(loss, inputs))

    pairs = zip(taken(ours), taken(theirs), strict=True)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return Work(lambda: taken(ours), lambda: taken(theirs), difference)


KINDS: dict[str, Callable[[], Calls]] = {
    "language": language,
    "softmax": partial(contrastive, "softmax"),
    "sigmoid": partial(contrastive, "sigmoid"),
}
PEERS = {"language": "torch", "softmax": "open_clip_torch", "sigmoid": "open_clip_torch"}
WHAT = {
    "language": "head and cross-entropy of 2,048 tokens, 512 wide, 32,000 pieces",
    "softmax": "softmax contrastive loss of 8,192 pairs, 512 wide",
    "sigmoid": "sigmoid contrastive loss of 8,192 pairs, 512 wide",
}
BECAUSE = {
    "language": f"logits are made once, {CHUNK} tokens at a time, and the gradient with them",
    "softmax": "logits are made twice, in chunks, and none is kept",
    "sigmoid": "logits are made once, in chunks, and the gradient with them",
}


def _memory(kind: str) -> tuple[float, float]:
    return raised(kind, "ours"), raised(kind, "theirs")


def raised(kind: str, whose: str) -> float:
    """MiB by which a pass raises the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--point", kind, whose]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **RETURNED})
    return float(json.loads(told.stdout))


def _point(kind: str, whose: str) -> float:
    torch.set_num_threads(2)
    ours, theirs, inputs = KINDS[kind]()
    torch.autograd.grad((inputs[0][:8] @ inputs[0][:8].T).sum(), inputs[0])  # what threads and kernels take once
    before = resident()
    torch.autograd.grad({"ours": ours, "theirs": theirs}[whose](), inputs)
    return (peak() - before) / 2**20


ROWS = [
    Row(
        f"loss_{kind}",
        f"{WHAT[kind]}, forward and backward",
        PEERS[kind],
        1,
        "passes",
        1 / 1.1,
        1e-4,
        partial(timed, make),
        BECAUSE[kind],
        memory=partial(_memory, kind),
        memory_at_most=1 / 6,
    )
    for kind, make in KINDS.items()
]

if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        print(json.dumps(_point(*sys.argv[2:])))
    else:
        main(ROWS)
