"""A zero-shot classifier of class names and templates beside open_clip's builder: weights copied, equal weights.

    python -m benchmarks.classifier [--classes 25]

The work is the same for each prompt, so a row has 25 of ImageNet's 1,000 classes, with all 80 templates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.beside import Row, Work, main
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import predictor
from mmformer.evaluation.zero_shot import embed_classes


def built(name: str, classes: int) -> Work:
    """The weights of a classifier by both."""
    import open_clip

    reference, opened = predictor(open_clip_model(name))
    encoder, tokenizer = opened.reader.text_encoders["text"], open_clip.tokenizer.SimpleTokenizer()
    names: Any = open_clip.IMAGENET_CLASSNAMES[:classes]
    templates: Any = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]

    def ours() -> Tensor:
        with torch.inference_mode():
            alone = [[each] for each in names]
            return embed_classes(opened.model, encoder, alone, templates, "text", torch.device("cpu"))

    def theirs() -> Tensor:
        made: Tensor = open_clip.build_zero_shot_classifier(reference, tokenizer, names, templates).T
        return made

    mine, other = ours(), theirs()
    return Work(ours, theirs, float((mine - other).abs().max() / other.abs().max()))


ROWS = [
    Row(
        "classifier",
        "zero-shot classifier by the text tower of ViT-S-32-alt, 25 classes × 80 templates",
        "open_clip_torch",
        25 * 80,
        "prompts",
        3.0,
        1e-4,
        partial(built, "ViT-S-32-alt", 25),
        "prompts are as long as they are, not 77 ids",
    )
]

if __name__ == "__main__":
    main(ROWS)
