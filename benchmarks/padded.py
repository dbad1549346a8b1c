"""Texts of log-normal lengths through a BERT beside transformers', which pads them: weights copied, equal outputs.

    python -m benchmarks.padded

Ours has ``packed: true``. A pass with gradients is forward, the mean of what leaves the stack times fixed numbers,
and backward; embeddings' gradients are compared, too.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.beside import Row, Work, main
from benchmarks.systems.case import DEEP, transformers_model
from benchmarks.systems.imported import imported
from mmformer.models.encoder import Encoder
from mmformer.models.logits import text_of
from mmformer.types import Batch

TEXTS, MOST = 32, 512


def lengths() -> Tensor:
    """Half of them above 64 ids, one of six above 145, the longest 512."""
    drawn = torch.empty(TEXTS).log_normal_(4.16, 0.8, generator=torch.Generator().manual_seed(0))
    found = drawn.long().clamp(4, MOST)
    found[found.argmax()] = MOST
    return found


USEFUL = int(lengths().sum())


def passed(gradients: bool, half: bool) -> Work:
    """What leaves the stack, of real ids alone, and of a pass with gradients those of embeddings, which come last."""
    reference, model = imported(transformers_model("Bert", "Model", **DEEP))
    encoder = model.encoders["text"]
    assert isinstance(encoder, Encoder)
    encoder.spec = dataclasses.replace(encoder.spec, packed=True)
    number = lengths()
    valid = torch.arange(MOST) < number[:, None]
    ids = torch.randint(5, 30_000, (TEXTS, MOST), generator=torch.Generator().manual_seed(1)) * valid
    batch = Batch((), {}, text=text_of(ids)._replace(lengths=number))
    embeddings = [_embedding(each, reference.config.vocab_size) for each in (model, reference)]
    weights = torch.randn(USEFUL, reference.config.hidden_size, generator=torch.Generator().manual_seed(2))

    def ours() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(gradients):
            return taken(model(batch).tokens["text"].x, embeddings[0])

    def theirs() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(gradients):
            return taken(reference(ids, attention_mask=valid.long()).last_hidden_state, embeddings[1])

    def taken(x: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        x = x[:, :MOST][valid]  # of all real ids
        if not gradients:
            return (x,)
        for module in (model, reference):
            module.zero_grad()
        torch.autograd.backward((x.float() * weights).mean())
        assert embedding.grad is not None
        return x.detach(), embedding.grad

    pairs = [(a.float(), b.float()) for a, b in zip(ours(), theirs(), strict=True)]
    return Work(ours, theirs, max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))


def _embedding(model: nn.Module, ids: int) -> Tensor:
    """The token embedding of a model."""
    (found,) = (each for each in model.parameters() if each.ndim == 2 and each.shape[0] == ids)
    return found


ROWS = [
    Row(
        f"padded_bert_{'training' if gradients else 'forward'}_{'bf16' if half else 'fp32'}",
        f"BERT of 4 layers, {TEXTS} texts of 4 to {MOST} ids, {USEFUL:,} in all, "
        f"{'forward and backward' if gradients else 'a forward pass'}, {'bf16' if half else 'fp32'}",
        "transformers",
        USEFUL,
        "real ids",
        2.0,
        5e-2 if half else 1e-5,
        partial(passed, gradients, half),
        "texts lie side by side in rows, where transformers computes padding",
        torch.bfloat16 if half else torch.float32,
    )
    for half in (False, True)
    for gradients in (False, True)
]

if __name__ == "__main__":
    main(ROWS)
