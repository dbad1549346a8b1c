"""Tiny untrained decoders, sharp enough that what they write differs, and what they read."""

from __future__ import annotations

from typing import Any

import torch
from tiny import VOCABULARY

from mmformer.generation.decoding import Decoding
from mmformer.models.decoder import DecoderSpec
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
KINDS = ("cross", "prefix", "alone")
EOS = 3


def model(kind: str, seed: int = 0, small: int | None = None) -> Model:
    """A model with the decoder ``writer``; ``small`` leaves it so many ids to choose among, eos with them."""
    layer = LayerSpec(AttentionSpec(2), GELUFeedForwardSpec(2), AttentionSpec(2) if kind == "cross" else None)
    spec = ModelSpec(
        {"image": StackSpec(16, 1), "writer": StackSpec(16, 2, layer, RotaryPositionSpec())},
        {"image": EncoderSpec(ImagePatchesSpec(patch=8), "image")},
        {"writer": DecoderSpec(WORDS, "writer", {} if kind == "alone" else {"image": kind}, tied=False)},  # type: ignore[dict-item]
    )
    made = spec.build().eval()
    made.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith(("stacks.writer", "decoders")) and parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
        if small is not None:
            tokenizer: Any = made.decoders["writer"].tokenizer
            open_ids = {EOS, *range(4, 4 + small)}
            tokenizer.unwritten = [index for index in range(tokenizer.size) if index not in open_ids]
    return made


def memory(rows: int, ragged: bool = True, seed: int = 1) -> dict[str, Tokens]:
    """What an encoder might have made: of different lengths where ``ragged``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, 16, generator=generator)
    time = torch.arange(5)
    pos = torch.stack((time, torch.zeros_like(time), torch.zeros_like(time)), -1).expand(rows, -1, -1)
    lengths = torch.arange(rows) % 5 + 1
    return {"image": Tokens(x, pos, time < lengths[:, None] if ragged else None)}


def prompts(rows: int, ragged: bool) -> Text:
    """bos, and for every other row a few ids more."""
    lengths = torch.tensor([1 + (row % 3 if ragged else 0) for row in range(rows)])
    ids = torch.full((rows, int(lengths.max())), 0)
    for row, length in enumerate(lengths.tolist()):
        ids[row, :length] = torch.tensor([2, *range(40 + row, 39 + row + length)])
    return Text(ids, lengths)


def decoding(kind: str, rows: int = 6, seed: int = 0, small: int | None = None, ragged: bool = True) -> Decoding:
    made = model(kind, seed, small)
    return Decoding(made, "writer", {} if kind == "alone" else memory(rows, ragged), rows)
