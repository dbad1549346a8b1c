"""The words of a text, as the measures of captions count them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mmformer.tokenizers.any_vocabulary import AnyVocabulary
from mmformer.types import Text

Run = tuple[str, ...]
"""Words that follow each other."""

# The tokenizer of the Penn treebank as COCO's measures run it (pycocoevalcap/tokenizer/ptbtokenizer.py), for captions:
# what is one word, in the order in which it is looked for.
_WORD = re.compile(
    r"""
      https?://\S+ | \S+@\S+\.\w+
    | (?:[^\W\d_]\.){2,}                                # p.m. and U.S.A.
    | \b(?:[a-z]|mr|mrs|ms|dr|prof|st|jr|sr|gen|sgt|capt|col|lt|gov|sen|rep|rev|hon|mt|ft|vs|etc|inc|co|corp|ltd|bros
        |ave|blvd|rd|mon|tue|tues|wed|thu|thurs|fri|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec)\.(?!\w)
    | \bno\.(?=\ ?\d)                                   # no. 7, but not the word
    | (?<!\w)'(?:\d\ds?|n'(?!\w)|(?:em|s|re|ve|ll|d|m)\b|t(?=is\b|was\b))  # the '90s, rock 'n' roll
    | [!?]{2,} | \*+ | [#@][^\W\d]\w*
    | \d+(?:[.,:/]\d+)+(?:-[^\W\d]\w*)*                 # 1,000 and 8:30, after which "am" is the next word
    | (?<![\w)])[-+]?\d+(?![\w'’/.-])
    | (?-i:[A-Z]+&[A-Z]+)
    | \w+(?:[-‐/.!?]\w+)*(?:['’][^\W\d]\w*)*
    | \.{2,} | [^\s\U00010000-\U0010ffff]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LEFT_OUT = re.compile(r"['\"`“”‘’«»,?!:;–—…-]|\.+")
_NAMES = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"£": "#", "€": "$", "¢": "cents"},
}
_TWO = {
    **{"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na")},
    **{"gimme": ("gim", "me"), "lemme": ("lem", "me"), "y'all": ("y'", "all")},
}
_CONTRACTION = re.compile(r"^(.+?)(n['’]t|['’](?:s|re|ve|ll|d|m))((?:['’]ve)?)$")


def plain(text: str) -> str:
    """A text in lower case, with one space between words; whole answers are compared like this."""
    return " ".join(text.lower().split())


def spoken(text: str) -> list[str]:
    """The words of a caption, in lower case, without punctuation around them or by itself.

    They are those of the tokenizer of the Penn treebank, which COCO's measures use: contractions are two words (don't:
    do, n't), abbreviations keep their dot, signs are words, and brackets have names.
    """
    words: list[str] = []
    for found in _WORD.findall(text.replace("&amp;", "&")):
        word = found.lower()
        contracted = _CONTRACTION.match(word)
        if _LEFT_OUT.fullmatch(word):
            continue
        if word in _TWO:
            words += _TWO[word]
        elif contracted:
            words += [part.replace("’", "'") for part in contracted.groups() if part]
        else:
            words.append(_NAMES.get(word, word))
    return words


def runs(words: Sequence[str], size: int) -> Counter[Run]:
    """How often each run of so many words is there."""
    return Counter(tuple(words[place : place + size]) for place in range(len(words) - size + 1))


def decoded(text: Text, vocabulary: AnyVocabulary) -> list[str]:
    """What ids were made of, without special tokens and the space before a text."""
    rows = zip(text.ids.tolist(), text.lengths.tolist(), strict=True)
    return [vocabulary.decode(ids[:length]).removeprefix(" ") for ids, length in rows]
