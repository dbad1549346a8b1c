"""A decoder that goes on where an encoder left the stack of both: what both would compute alike is computed once.

CoCa's captioner is the second half of a stack whose first half reads texts alone, for their embedding (Yu et al. 2022,
§3.2): one pass over a text serves both.
"""

from __future__ import annotations

import dataclasses

from mmformer.models.decoder import Begun, Decoder, DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Tokens


def goes_on(decoder: DecoderSpec, encoder: EncoderSpec) -> bool:
    """Whether a decoder makes of a text, in the layers that an encoder runs, what the encoder makes of it.

    Both embed ids by one table and run one stack, causally, of which the encoder leaves the last layers; no token
    stands before the text in either. What stands behind it changes nothing that is before.
    """
    words = encoder.tokenizer
    return (
        encoder.stack == decoder.stack
        and encoder.causal
        and encoder.layers is not None
        and encoder.resampler is None
        and (encoder.class_last or not encoder.special)
        and isinstance(words, TextTokensSpec)
        and words.begin
        and not words.types  # each has a table of its own
        and dataclasses.replace(words, begin=False) == decoder.tokenizer
        and set(decoder.reads.values()) <= {"cross"}
    )


def begun(decoder: Decoder, encoder: EncoderSpec, batch: Batch, left: Tokens) -> Begun | None:
    """What an encoder made of the text that a decoder reads; None: the decoder has to begin itself.

    Specs decide, and which values a batch has, but never what they are: processes that share layers run the same ones.

    Args:
        encoder: whose token embeddings are the decoder's too.
        left: what left it.
    """
    text, special = batch.text, decoder.tokenizer.special
    if text is None or batch.target is not None or not text.begun or special.first != special.bos:
        return None
    marked = text.valid is not None or text.types is not None or text.everywhere is not None
    if marked or not goes_on(decoder.spec, encoder):
        return None
    assert encoder.layers is not None, "it leaves the stack before its end"
    # What it hands on has its special token first, and may have padding last; a decoder does not read the last id.
    return Begun(left.x[:, encoder.special :][:, : text.ids.shape[1] - 1], encoder.layers)
