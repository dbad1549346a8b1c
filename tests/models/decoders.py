"""Tiny decoders over tiny image encoders, what they read, and a way to run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from tiny import SIDE, VOCABULARY

from mmformer.models.decoder import Decoded, Decoder, DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Text, Tokens

WORDS = TextTokensSpec(VOCABULARY, context_length=16)
BOS, EOS = 2, 3
READS: dict[str, dict[str, Any]] = {
    "alone": {},
    "cross": {"image": "cross"},
    "prefix": {"image": "prefix"},
    "two by cross": {"image": "cross", "whole": "cross"},
    "one by each": {"image": "cross", "whole": "prefix"},
}
ROWS = [[5, 6, 7, 8, 9, EOS], [10, EOS], [11, 12, 13, EOS]]
"""Three texts of different lengths."""


def spec(kind: str, **changes: Any) -> ModelSpec:
    """Over encoders of four patches and of one, wider than the decoder."""
    layer = LayerSpec(AttentionSpec(2, bias=False), GELUFeedForwardSpec(2))
    crossed = dataclasses.replace(layer, cross=AttentionSpec(2, bias=False))
    crosses = "cross" in READS[kind].values()
    writer = StackSpec(16, 2, crossed, RotaryPositionSpec(), memory_width=24)
    if not crosses:
        writer = dataclasses.replace(writer, layer=layer, memory_width=None)
    encoders = {
        "image": EncoderSpec(ImagePatchesSpec(patch=8), "eye"),
        "whole": EncoderSpec(ImagePatchesSpec(patch=SIDE), "eye"),
    }
    encoders = {name: encoder for name, encoder in encoders.items() if name in READS[kind]}
    stacks = {"writer": writer, **({"eye": StackSpec(24, 1, layer)} if encoders else {})}
    return ModelSpec(stacks, encoders, {"caption": DecoderSpec(WORDS, "writer", READS[kind], **changes)})


def build(made: ModelSpec, seed: int = 0) -> Model:
    """Weights so large that every token matters, in float64."""
    model = made.build().eval()
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.double()


def decoder(model: Model) -> Decoder:
    made = model.decoders["caption"]
    assert isinstance(made, Decoder)
    return made


def memory(rows: int = len(ROWS), seed: int = 1) -> dict[str, Tokens]:
    """What the two encoders might have made; of ``image``, rows have one to four tokens that are real."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(4)
    pos = torch.stack((torch.zeros_like(place), place // 2, place % 2), -1).expand(rows, -1, -1)
    x = torch.randn(rows, 5, 24, generator=generator, dtype=torch.float64)
    valid = place < (torch.arange(rows) % 4 + 1)[:, None]
    return {"image": Tokens(x[:, :4], pos, valid), "whole": Tokens(x[:, 4:], pos[:, :1])}


def of_row(read: dict[str, Tokens], row: int) -> dict[str, Tokens]:
    """One row's, without the tokens that are not real."""
    keep = {n: slice(None) if t.valid is None else t.valid[row] for n, t in read.items()}
    return {name: Tokens(t.x[row : row + 1, keep[name]], t.pos[row : row + 1, keep[name]]) for name, t in read.items()}


def padded(rows: Sequence[Sequence[int]], length: int | None = None, fill: int = 0) -> Text:
    lengths = [len(row) for row in rows]
    ids = torch.full((len(rows), length or max(lengths)), fill)
    for row, target in zip(rows, ids, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return Text(ids, torch.tensor(lengths))


def run(model: Model, rows: Sequence[Sequence[int]], read: dict[str, Tokens], **more: Any) -> Decoded:
    return decoder(model)(padded(rows), read, model.stack_of("writer"), **more)  # type: ignore[no-any-return]
