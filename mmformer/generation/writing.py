"""Texts, not ids: prompts in, what a decoder writes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.packs import Packs
from mmformer.models.insertion import spread
from mmformer.models.model import Model
from mmformer.types import Text, Tokens


def write_texts(
    model: Model,
    name: str,
    memory: Mapping[str, Tokens],
    prompts: Sequence[str],
    spec: GenerationSpec,
    numbers: Sequence[int] | None = None,
    packs: Packs | None = None,
) -> list[str]:
    """What a decoder writes after each prompt, with the prompt.

    Args:
        model: in evaluation mode.
        name: of the decoder.
        memory: encoder -> what left its stack, a row for each prompt.
        prompts: what the texts begin with; "" for nothing.
        spec: how ids are chosen.
        numbers: of the rows among all inputs (see ``GenerationSpec.write``).
        packs: for those who write further batches with the same weights (see ``Decoding``).
    """
    decoding = Decoding(model, name, memory, len(prompts), packs)
    tokenizer = decoding.decoder.spec.tokenizer
    vocabulary = tokenizer.encoder().vocabulary
    spaced = [prompt and " " + prompt for prompt in prompts] if tokenizer.prefix_space else list(prompts)
    begun, special = vocabulary.encode_many(spaced), vocabulary.ids
    placeholder, places = decoding.decoder.spec.placeholder, decoding.decoder.places(memory)
    if placeholder is not None:
        begun = [spread(given, placeholder, places) for given in begun]
    rows = [[*special.before(given), *given] for given in begun]
    if special.languages:
        rows = _with_languages(rows, decoding)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), special.pad or 0, dtype=torch.int64)  # B L
    for row, whole in zip(ids, rows, strict=True):
        row[: len(whole)] = torch.tensor(whole)
    written = spec.write(decoding, Text(ids, lengths).to(decoding.device), numbers)
    texts = [vocabulary.decode([*given, *text.ids]) for given, text in zip(begun, written, strict=True)]
    return [text.removeprefix(" ") for text in texts] if tokenizer.prefix_space else texts


@torch.inference_mode()
def _with_languages(rows: list[list[int]], decoding: Decoding) -> list[list[int]]:
    """Rows with the likeliest language after the first id, where they have none there."""
    languages = decoding.decoder.tokenizer.special.languages
    if all(row[1:2] and row[1] in languages for row in rows):
        return rows
    first = torch.full((len(rows), 1), decoding.decoder.tokenizer.start, device=decoding.device)
    logits, _ = decoding.begin(Text(first, torch.ones_like(first[:, 0])))
    likeliest = logits[:, list(languages)].argmax(dim=1).tolist()
    return [
        row if row[1:2] and row[1] in languages else [row[0], languages[found], *row[1:]]
        for row, found in zip(rows, likeliest, strict=True)
    ]
