"""Captions of pictures beside open_clip's and transformers' models: weights copied, equal ids.

    python -m benchmarks.captioning

open_clip's CoCa is decoded as it is: the picture is read once, its text for each id anew, for it has no cache; its own
beam search reads the picture for each beam (``open_clip_beams.py``). transformers' BLIP has one. No caption ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.beside import Row, Work, main
from benchmarks.open_clip_beams import OpenClipBeams
from benchmarks.systems.case import open_clip_model, transformers_model
from benchmarks.systems.imported import imported
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.packs import Packs
from mmformer.generation.sampling import GreedySpec
from mmformer.models.logits import text_of
from mmformer.models.model import Model
from mmformer.types import Batch

NEW = 20


def writer(model: Model, spec: GenerationSpec, image: Tensor, start: int) -> Callable[[], list[list[int]]]:
    """Pictures to ids, by the decoder that there is. Weights are packed once for all passes, as for many batches."""
    (name,), prompt, packs = model.decoders, torch.full((len(image), 1), start), Packs()
    with torch.inference_mode():
        reader = model.for_many()

    def write() -> list[list[int]]:
        with torch.inference_mode():
            read = reader(Batch((), {}, image), decode=False).tokens
            return [each.ids for each in spec.write(Decoding(model, name, read, len(image), packs), text_of(prompt))]

    return write


def unequal(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of ids that are not the same."""
    pairs = [a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    return 1 - sum(pairs) / len(pairs)


def coca(pictures: int) -> Work:
    """Greedy captions by CoCa ViT-B-32."""
    reference, model = imported(open_clip_model("coca_ViT-B-32"))
    image, start = torch.randn(pictures, 3, 224, 224), 49406
    ours = writer(model, GreedySpec(min_length=NEW, max_length=NEW), image, start)

    def theirs() -> list[list[int]]:
        ids = torch.full((pictures, 1), start)
        with torch.inference_mode():
            latent, seen = reference._encode_image(image)
            for _ in range(NEW):
                logits = reference(None, ids, latent, seen, output_labels=False)["logits"][:, -1]
                logits[:, 49407] = float("-inf")
                ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
        made: list[list[int]] = ids[:, 1:].tolist()
        return made

    return Work(ours, theirs, unequal(ours(), theirs()))


def coca_beams(pictures: int, beams: int) -> Work:
    """Captions by beams of CoCa ViT-B-32.

    open_clip adds up logits, not their log-probabilities: ids are compared with ours doing that too, and timed as
    users have them, with log-probabilities.
    """
    name = "coca_ViT-B-32"
    reference, model = imported(open_clip_model(name))
    image = torch.randn(pictures, 3, 224, 224)
    theirs = OpenClipBeams(name, reference.state_dict(), image, NEW, beams)
    ours = writer(model, BeamSpec(NEW, NEW, beams=beams), image, 49406)
    with patch("mmformer.generation.beam.log_probabilities", _logits):
        difference = unequal(ours(), theirs())
    return Work(ours, theirs, difference)


def _logits(logits: Tensor, history: Tensor, short: Tensor, spec: GenerationSpec, ends: Sequence[int]) -> Tensor:
    logits[:, list(ends)] = float("-inf")
    return logits


def blip(pictures: int, beams: int) -> Work:
    """Captions by BLIP in its published size, at 224 pixels; by beams, or greedy where there is one."""
    sizes: dict[str, Any] = {"vision_config": {"image_size": 224}}
    reference, model = imported(transformers_model("Blip", "ForConditionalGeneration", **sizes))
    image, start = torch.randn(pictures, 3, 224, 224), int(reference.config.text_config.bos_token_id)
    spec: GenerationSpec = GreedySpec(NEW, NEW) if beams == 1 else BeamSpec(NEW, NEW, beams=beams)

    def theirs() -> list[list[int]]:
        with torch.inference_mode():
            made = reference.generate(
                pixel_values=image, max_new_tokens=NEW, min_new_tokens=NEW, num_beams=beams, do_sample=False
            )
        ids: list[list[int]] = made[:, 1:].tolist()
        return ids

    ours = writer(model, spec, image, start)
    return Work(ours, theirs, unequal(ours(), theirs()))


ROWS = [
    Row(
        "captioning_coca_greedy",
        f"CoCa B/32, 32 pictures, {NEW} ids each, greedy",
        "open_clip_torch",
        32,
        "captions",
        15.0,
        0.0,
        partial(coca, 32),
        "what was written is kept, not read again for each id; weights are packed once",
    ),
    Row(
        "captioning_coca_beams",
        f"CoCa B/32, 8 pictures, {NEW} ids each, 6 beams",
        "open_clip_torch",
        8,
        "captions",
        25.0,
        0.0,
        partial(coca_beams, 8, 6),
        "pictures are read once, not for each beam; what was written is kept; beams read their picture together; "
        "weights are packed once",
    ),
    *(
        Row(
            f"captioning_blip_{name}",
            f"BLIP, 8 pictures, {NEW} ids each, {'greedy' if beams == 1 else f'{beams} beams'}, caches on both sides",
            "transformers",
            8,
            "captions",
            1.5,
            0.0,
            partial(blip, 8, beams),
            "weights are packed once" if beams == 1 else "weights are packed once; beams read their picture together",
        )
        for name, beams in (("greedy", 1), ("beams", 4))
    ),
]

if __name__ == "__main__":
    main(ROWS)
