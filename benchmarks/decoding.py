"""Greedy writing by a language model shaped as GPT-2 beside transformers': weights copied, equal ids, with caches.

    python -m benchmarks.decoding

In bfloat16 two ids of a model that was never trained are often as likely as each other to the last bit, and texts part
after some ids: there the first id's logits are compared.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.beside import Row, Work, main
from benchmarks.systems.case import transformers_model
from benchmarks.systems.imported import imported
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.models.logits import text_of

PROMPT, NEW = 64, 128
SIZES = {"n_layer": 6, "n_embd": 512, "n_head": 8}


def written(rows: int, dtype: torch.dtype) -> Work:
    """So many ids after each of the prompts, none of which ends early."""
    theirs, model = imported(transformers_model("GPT2", "LMHeadModel", **SIZES))
    theirs.to(dtype)
    model.to(dtype)
    (name,) = model.decoders
    prompt = torch.randint(5, 1000, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    spec = GreedySpec(max_length=NEW, min_length=NEW)
    seen, reads = torch.ones_like(prompt), _reads(theirs, rows)

    def ours() -> list[list[int]]:
        with torch.inference_mode():
            return [list(each.ids) for each in spec.write(Decoding(model, name, {}, rows=rows), text_of(prompt))]

    def its() -> list[list[int]]:
        with torch.inference_mode():
            made = theirs.generate(
                prompt, attention_mask=seen, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
            )
        rows_of: list[list[int]] = made[:, PROMPT:].tolist()
        return rows_of

    if dtype == torch.float32:
        pairs = [a == b for mine, other in zip(ours(), its(), strict=True) for a, b in zip(mine, other, strict=True)]
        return Work(ours, its, 1 - sum(pairs) / len(pairs), reads=reads)
    with torch.inference_mode():
        mine, _ = Decoding(model, name, {}, rows=rows).begin(text_of(prompt))
        other = theirs(prompt).logits[:, -1].float()
    there = mine.isfinite()
    return Work(ours, its, float((mine - other)[there].abs().max() / other.abs().max()), reads=reads)


def _reads(model: Any, rows: int) -> float:
    """Bytes that all ids have to read: the weights for each, and what the rows keep of those before it."""
    weights = [*model.transformer.h.parameters(), model.lm_head.weight]
    held = 2 * SIZES["n_layer"] * SIZES["n_embd"] * rows * (PROMPT + NEW // 2)
    return float(NEW * weights[0].itemsize * (sum(weight.numel() for weight in weights) + held))


ROWS = [
    Row(
        f"decoding_{rows}_{precision.split()[0]}",
        f"language model of 6 layers, 512 wide, {NEW} ids after {PROMPT}, batch {rows}, {precision}",
        "transformers",
        rows * NEW,
        "tokens",
        bound,
        0.0 if dtype == torch.float32 else 2e-2,
        partial(written, rows, dtype),
        "weights are packed after eight ids; the cache has room ahead, and is not copied for each id",
        dtype=None,
    )
    for dtype, precision, bound in ((torch.float32, "fp32", 1.2), (torch.bfloat16, "bf16 weights", 1.5))
    for rows in (1, 16)
]

if __name__ == "__main__":
    main(ROWS)
