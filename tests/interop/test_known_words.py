"""Texts are cut word by word where that gives the ids of whole texts, and only there."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from vocabulary_folders import FOLDERS
from vocabulary_pairs import open_clip_merges, pair_of
from vocabulary_texts import texts

from mmformer.interop.vocabularies import from_open_clip
from mmformer.tokenizers.opening import from_content
from mmformer.tokenizers.published import TokenizersVocabulary
from mmformer.tokenizers.words import LONGEST, MOST, KnownWords, words_stand_apart
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # transformers' Marian

APART = ("bert", "clip", "open_clip")
"""Others' words begin with their space, or are cut by what is not known to leave words alone."""
ODD = ["", " ", "  two  spaces ", "\u0301 marks \u0301a", "tab\tand\nline", "Σ ΑΣ ΑΣ.", "a\u00a0b \u3000c", "x" * 300]


def found(name: str) -> TokenizersVocabulary | None:
    ours = pair_of(name).ours if name != "open_clip" else _open_clip()
    return ours if isinstance(ours, TokenizersVocabulary) else None


def _open_clip() -> Any:
    made = from_open_clip(open_clip_merges())
    return from_content(made.content, made.ids)


@pytest.mark.parametrize("name", [*FOLDERS, "open_clip"])
def test_ids_are_those_of_whole_texts(name: str) -> None:
    ours = found(name)
    if ours is None:
        pytest.skip("it is not the library's")
    assert (ours._words is not None) == (name.split()[0] in APART)
    for _ in range(2):  # the second time, words are known
        for text in [*ODD, *texts(300)]:
            assert ours._encode(text) == ours._whole(text), repr(text)


def cutter(**parts: Any) -> Tokenizer:
    made = Tokenizer(parts.get("model") or models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.Whitespace())
    if "normalizer" in parts:
        made.normalizer = parts["normalizer"]
    made.add_tokens(parts.get("added", []))
    return made


def split(pattern: str, behavior: str = "removed", invert: bool = True) -> dict[str, Any]:
    return {"pre_tokenizer": pre_tokenizers.Split(Regex(pattern), behavior, invert)}


@pytest.mark.parametrize(
    ("parts", "apart"),
    [
        ({}, True),
        ({"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])}, True),
        ({"normalizer": normalizers.Replace(Regex(r"\s+"), " ")}, True),
        ({"normalizer": normalizers.Replace(" ", "_")}, False),
        ({"normalizer": normalizers.Prepend("_")}, False),
        ({"normalizer": normalizers.Strip()}, False),
        ({"added": ["two words"]}, False),
        ({"added": ["<one>"]}, True),
        ({"normalizer": normalizers.NFKC(), "added": ["\ufdfa"]}, False),  # four words, once it is normalised
        ({"normalizer": normalizers.NFKC(), "added": [AddedToken("\ufdfa", normalized=False)]}, True),
        ({"normalizer": normalizers.StripAccents(), "added": ["\u0301"]}, False),  # nothing, which is everywhere
        ({"model": models.BPE({"a": 0}, [], dropout=0.1)}, False),
        ({"model": models.BPE({"a": 0}, [])}, True),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}, False),
        ({"pre_tokenizer": pre_tokenizers.Metaspace()}, False),
        ({"pre_tokenizer": pre_tokenizers.Sequence([])}, False),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
                )
            },
            True,
        ),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
                )
            },
            False,
        ),
        (split(r"<\|end\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), True),
        (split(r"(?i:'s|'t)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), True),
        (split(r"\p{L}+", invert=False), False),
        (split(r"\p{L}+", behavior="isolated"), False),
        (split(r" ?\p{L}+|\p{N}"), False),
        (split(r"\p{L}+(?= )|\p{N}"), False),
        (split(r"\s+|\p{N}"), False),
        (split(r"[^\p{L}]+|\p{L}+"), False),
        (split(r".+"), False),
    ],
)
def test_what_is_known_to_leave_words_alone(parts: dict[str, Any], apart: bool) -> None:
    assert words_stand_apart(cutter(**parts)) is apart


def test_no_more_words_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmformer.tokenizers.words.MOST", 3)
    asked: list[str] = []
    words = KnownWords(lambda word: (asked.append(word), [len(word)])[1])
    long = "y" * (LONGEST + 1)
    for _ in range(2):
        assert words.encode(f"a bb ccc {long}") == [1, 2, 3, LONGEST + 1]
    assert asked == ["a", "bb", "ccc", long, long]
    assert words.encode("dddd") == [4]
    assert words == {"dddd": [4]}, "those that are used come back"
    assert MOST > 1000


def test_ids_that_are_handed_out_are_not_those_that_are_kept() -> None:
    words = KnownWords(lambda word: [*map(ord, word)])
    words.encode("ab").append(0)
    assert words.encode("ab") == [97, 98]


def test_workers_begin_with_no_words() -> None:
    """A pickle has the file alone."""
    ours = _open_clip()
    ids = ours.encode("a cat")
    assert ours._words.keys() >= {"a", "cat"}
    again = pickle.loads(pickle.dumps(ours))
    assert again._words == {}
    assert again.encode("a cat") == ids
