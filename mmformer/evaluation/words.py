"""The words of a text, as the measures of captions count them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mmformer.tokenizers.vocabulary import Vocabulary
from mmformer.types import Text

Run = tuple[str, ...]
"""Words that follow each other."""

# What COCO's measures leave out, but for its bracket names: pycocoevalcap/tokenizer/ptbtokenizer.py.
_MARKS = "'\"`“”‘’«»().,?!:;-–—…[]{}"
_CONTRACTION = re.compile(r"(?i)^(.+?)(n['’]t|['’](?:s|re|ve|ll|d|m))$")


def plain(text: str) -> str:
    """A text in lower case, with one space between words; whole answers are compared like this."""
    return " ".join(text.lower().split())


def spoken(text: str) -> list[str]:
    """The words of a caption, in lower case, without punctuation around them or by itself.

    Contractions are two words (don't: do, n't), as in the tokenizer of the Penn treebank, which COCO's measures use.
    """
    words: list[str] = []
    for word in text.lower().split():
        inner = word.strip(_MARKS)
        match = _CONTRACTION.match(inner)
        words += [match[1], match[2].replace("’", "'")] if match else [inner] if inner else []
    return words


def runs(words: Sequence[str], size: int) -> Counter[Run]:
    """How often each run of so many words is there."""
    return Counter(tuple(words[place : place + size]) for place in range(len(words) - size + 1))


def decoded(text: Text, vocabulary: Vocabulary) -> list[str]:
    """What ids were made of, without special tokens and the space before a text."""
    rows = zip(text.ids.tolist(), text.lengths.tolist(), strict=True)
    return [vocabulary.decode(ids[:length]).removeprefix(" ") for ids, length in rows]
