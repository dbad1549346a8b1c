"""Captions to ids beside open_clip's tokenizer and Hugging Face's tokenizers, on one core; equal ids.

    python -m benchmarks.tokenising        (DATA=DIR, with multi30k/ as it was published, for captions of sentences)

Each makes a tensor of ids of batches of 1,024 captions. Hugging Face's has CLIP's vocabulary as we open it, and its own
padding; it mends no texts, as the other two do, so that a few captions differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice

import torch
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from benchmarks.beside import Row, Work, main
from benchmarks.captions import multi30k
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import predictor
from mmformer.tokenizers.published import TokenizersVocabulary, read_tokenizer

BATCH, START, END = 1024, 49406, 49407


def tokenised(peer: str, number: int) -> Work:
    """So many captions of Multi30k, over and over."""
    import open_clip

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    captions = list(islice(cycle(multi30k(29_000)), number))
    batches = [captions[first : first + BATCH] for first in range(0, number, BATCH)]
    encoder = predictor(open_clip_model("ViT-S-32-alt"))[1].reader.text_encoders["text"]
    assert isinstance(encoder.vocabulary, TokenizersVocabulary)
    theirs: Callable[[list[str]], Tensor]
    if peer == "open_clip_torch":
        theirs = open_clip.tokenizer.SimpleTokenizer()
    else:
        assert encoder.vocabulary.archive.vocabulary is not None
        tokenizer = read_tokenizer(encoder.vocabulary.archive.vocabulary, "CLIP's")
        tokenizer.normalizer = Lowercase()
        tokenizer.post_processor = TemplateProcessing(
            "<start_of_text> $A <end_of_text>",
            special_tokens=[("<start_of_text>", START), ("<end_of_text>", END)],
        )
        tokenizer.enable_truncation(77)
        tokenizer.enable_padding(pad_id=0)

        def theirs(texts: list[str]) -> Tensor:
            return torch.tensor([each.ids for each in tokenizer.encode_batch(texts)])

    def all_of(make: Callable[[list[str]], Tensor]) -> Iterator[Tensor]:
        return (make(batch) for batch in batches)

    def ours() -> None:
        for _ in all_of(lambda texts: encoder.encode(texts).ids):
            pass

    def its() -> None:
        for _ in all_of(theirs):
            pass

    wrong = 0
    for batch in batches[:30]:
        made = encoder.encode(batch)
        for ids, length, other in zip(made.ids.tolist(), made.lengths.tolist(), theirs(batch).tolist(), strict=True):
            wrong += ids[:length] != [x for x in other if x]
    return Work(ours, its, wrong / (30 * BATCH))


ROWS = [
    Row(
        f"tokenising_{name}",
        f"{number:,} captions of Multi30k to ids of CLIP's vocabulary, one core",
        peer,
        number,
        "captions",
        bound,
        allowed,
        partial(tokenised, peer, number),
        "words that were cut before are looked up",
        dtype=None,
    )
    for name, peer, number, bound, allowed in (
        ("open_clip", "open_clip_torch", 100_000, 10.0, 0.0),
        ("tokenizers", "tokenizers", 100_000, 1.0, 1e-3),
    )
]

if __name__ == "__main__":
    main(ROWS)
