"""Words whose ids are known already, where a word's ids do not hang on what stands around it (no torch here).

CLIP's and BERT's vocabularies cut texts at spaces, which leave nothing behind. A few thousand words make up most texts:
to look one up takes a fiftieth of the time that the ``tokenizers`` library needs to cut it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

MOST = 2**16
"""Words at most that are remembered: some 15 MB."""
LONGEST = 64
"""Characters at most of a word that is."""


class KnownWords(dict[str, list[int]]):
    """Words and their ids; what is not known yet is cut when it is asked for.

    Args:
        encode: a text to its ids.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def encode(self, text: str) -> list[int]:
        """The ids of a text: those of its words, one after the other."""
        return [*chain.from_iterable(map(self.__getitem__, text.split(" ")))]

    def __missing__(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= LONGEST:
            if len(self) >= MOST:  # words that are used come back
                self.clear()
            self[word] = ids
        return ids


def words_stand_apart(tokenizer: Tokenizer) -> bool:
    """Whether a text's ids are those of what stands between its spaces, one after the other, whatever the text is.

    True for what is known to be so; a tokenizer in other parts is asked for whole texts.
    """
    cutters = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    return (
        not any(getattr(tokenizer.model, name, None) for name in _RANDOM)
        and all(map(_is_local, _parts(tokenizer.normalizer, "normalizers")))
        and not any(_has_spaces(token, tokenizer.normalizer) for token in tokenizer.get_added_tokens_decoder().values())
        and bool(cutters)
        and _drops_spaces(cutters[0])
        and all(map(_goes_on_alone, cutters[1:]))
    )


_RANDOM = ("dropout", "alpha", "nbest_size")
"""Of a model that cuts a word in another way each time."""


def _has_spaces(token: Any, normalizer: Any) -> bool:
    """Whether a token that is sought in texts by itself may be found across spaces, or everywhere."""
    sought = [token.content]
    if token.normalized and normalizer is not None:  # in texts that are normalised
        sought.append(normalizer.normalize_str(token.content))
    return any(not each or re.search(r"\s", each) for each in sought)


def _parts(part: Any, inner: str) -> list[dict[str, Any]]:
    """What a part of a tokenizer is made of, in order; none where it has none."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return list(state[inner]) if state["type"] == "Sequence" else [state]


def _is_local(normalizer: dict[str, Any]) -> bool:
    """Whether what it makes of a word is the same beside a space as alone."""
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == {"Regex": r"\s+"} and normalizer["content"] == " ")
    return normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer")


def _drops_spaces(cutter: dict[str, Any]) -> bool:
    """Whether it cuts at every space, and leaves none."""
    if cutter["type"] == "Split":
        pattern = cutter["pattern"].get("Regex")
        spaceless = pattern is not None and all(map(_SPACELESS.fullmatch, _alternatives(pattern)))
        return bool(spaceless and cutter["behavior"] == "Removed" and cutter["invert"])
    return cutter["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _goes_on_alone(cutter: dict[str, Any]) -> bool:
    """Whether it heeds nothing beside the pieces that it cuts further."""
    if cutter["type"] == "Metaspace":
        return bool(cutter["prepend_scheme"] != "first")
    return cutter["type"] in ("ByteLevel", "Digits", "Punctuation", "BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _alternatives(pattern: str) -> list[str]:
    """Of a regular expression: those of a group that it begins with, and the others."""
    return re.split(r"(?<!\\)\|", re.sub(r"^\(\?i?:(.*?)\)(?=\|)", r"\1", pattern))


_SPACELESS = re.compile(
    r"(?:[\w'<>]|\\\|)+"  # as it is written
    r"|\[?\\p\{[LN]\}\]?\+?"  # letters, numbers
    r"|\[\^\\s\\p\{L\}\\p\{N\}(?:\\x\{345\})?\]\+"  # what is neither, nor a space
)
"""Alternatives that match no space and look at nothing around what they match."""
