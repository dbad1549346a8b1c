"""Which captions pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sets import fields, samples, texts, write_set

from mmformer.curation.candidates import Place
from mmformer.curation.captions import Captions, letters
from mmformer.errors import InputError

TEXT = Place("text", "json", "said")


def reasons(folder: Path, captions: list[str], **options: Any) -> list[str]:
    """Why each of the captions is removed; "" where it is not."""
    source = write_set(folder / "set", train=texts(*captions))
    return [verdict.reason for verdict in Captions(**options).judge(samples(source))]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"characters": (3, 8)}, ["few characters", "", "", "many characters", "few characters"]),
        ({"characters": (4, None)}, ["few characters", "few characters", "", "", "few characters"]),
        ({"words": (1, 2)}, ["", "", "", "many words", "few words"]),
        ({"words": (0, 1)}, ["", "", "many words", "many words", ""]),
        ({"match": r"^\w+$"}, ["", "no match", "no match", "no match", "no match"]),
        ({"avoid": r"(?i)RED"}, ["", "", "pattern", "pattern", ""]),
    ],
)
def test_length_and_patterns(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    assert reasons(tmp_path, ["ab", " abc ", "a  redd", "one red fox more", "  "], **options) == expected


def test_letters_are_those_of_any_script() -> None:
    assert letters("ab 1!") == pytest.approx(2 / 4)
    assert letters("Füße лиса 犬") == 1
    assert letters("हिन्दी") == 1, "vowel signs and the virama belong to their letters"
    assert letters("123 -- ☂") == letters("  ") == 0


def test_few_letters(tmp_path: Path) -> None:
    assert reasons(tmp_path, ["IMG_0042", "heart", "a1b2", "a1b23"], letters=0.5) == [
        "few letters",
        "",
        "",
        "few letters",
    ]


def test_a_caption_that_many_have_is_none_of_theirs(tmp_path: Path) -> None:
    captions = ["star", "Star", " star ", "moon", "moon", "sun"]
    assert reasons(tmp_path, captions, repeats=2) == ["repeated"] * 3 + [""] * 3
    assert reasons(tmp_path / "one", captions, repeats=1) == ["repeated"] * 5 + [""]


def test_languages(tmp_path: Path) -> None:
    captions = ["a small dog on the table", "ein kleiner Hund auf dem Tisch", "маленькая собака", "dog"]
    assert reasons(tmp_path / "en", captions, languages=("en",)) == ["", "other language", "other language", ""]
    assert reasons(tmp_path / "two", captions, languages=("de", "ru")) == ["other language", "", "", ""]
    sure = reasons(tmp_path / "sure", captions, languages=("en",), certainty=0.3)
    assert sure == ["", "other language", "other language", "other language"], "one word is not surely of any language"


def test_the_detail_says_what_was_found(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", train=texts("ein kleiner Hund auf dem Tisch", "a" * 200))
    language, long = Captions(languages=("en",), characters=(1, 100)).judge(samples(source))
    assert language.detail == "de rather than en: 'ein kleiner Hund auf dem Tisch'"
    assert long.detail == f"200: '{'a' * 80}'"


def test_every_caption_of_several_has_to_pass(tmp_path: Path) -> None:
    said = [["a dog", "a cat"], ["a dog", "cat"], [], "a dog", None]
    source = write_set(tmp_path / "set", train=fields(*({"said": value} for value in said)))
    verdicts = Captions(TEXT, words=(2, None)).judge(samples(source))
    assert [verdict.reason for verdict in verdicts] == ["", "few words", "no caption", "", "no caption"]
    repeated = Captions(TEXT, repeats=2).judge(samples(source))
    assert [verdict.reason for verdict in repeated] == ["repeated", "repeated", "no caption", "repeated", "no caption"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to pass"),
        ({"characters": (5, 4)}, "Captions.characters must be a range"),
        ({"words": (0, None)}, "Captions.words must be a range"),
        ({"words": (0, 0)}, "Captions.words must be a range"),
        ({"letters": 1.5}, "Captions.letters must be 0 to 1"),
        ({"repeats": 0}, "Captions.repeats must be at least 1"),
        ({"match": "("}, r"Captions.match is no regular expression: '\('"),
        ({"languages": ("en",), "certainty": 1}, "Captions.certainty must be between 0 and 1"),
        ({"words": (2, None), "certainty": 0.5}, "Captions.certainty must be left alone where no language is wanted"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Captions(**options)


def test_an_unknown_language_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The language 'eng' is not known.*Did you mean 'en'"):
        reasons(tmp_path, ["a"], languages=("eng",))
