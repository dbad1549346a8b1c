"""Captions: what each spec draws from a sample's fields, how often, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from mmformer.data.caption import (
    CaptionSpec,
    FieldCaptionSpec,
    JoinedCaptionSpec,
    MixedCaptionSpec,
    SampledCaptionSpec,
    WordDropoutCaptionSpec,
    lookup,
)
from mmformer.data.seeding import generator
from mmformer.errors import InputError

FIELDS: dict[str, Any] = {
    "names": {"en": "red heart", "de": "rotes Herz"},
    "keywords": {"en": ["love", "heart", "red", "emotion"], "de": []},
    "count": 3,
}
NAME = FieldCaptionSpec("names.en")
WORDS = SampledCaptionSpec("keywords.en")


def choose(spec: CaptionSpec, position: int = 0, fields: Any = FIELDS) -> str:
    return spec.choose(fields, generator(0, "caption", position), "key")


def test_what_is_optional_may_be_absent() -> None:
    fields = {"label": {"en": "x", "none": None}, "nothing": None}
    assert lookup(fields, "label.en", "key", optional=True) == "x"
    for path in ("label.de", "lab.en", "label.none", "label.none.deeper", "nothing", "nothing.en"):
        assert lookup(fields, path, "key", optional=True) is None
    assert lookup(None, "", "key", optional=True) is None
    with pytest.raises(InputError, match=r"there is no field 'label.en.x'"):
        lookup(fields, "label.en.x", "key", optional=True)  # a text on the way is a mistake, not an absence
    with pytest.raises(InputError, match=r"there is no field 'label.de'; 'label' has en, none"):
        lookup(fields, "label.de", "key")


def many(spec: CaptionSpec, number: int = 2000) -> Counter[str]:
    return Counter(choose(spec, position) for position in range(number))


def about(found: int, expected: float, number: int = 2000) -> bool:
    """Within five standard deviations of a binomial count."""
    share = expected / number
    return abs(found - expected) <= 5 * (number * share * (1 - share)) ** 0.5


def test_a_field_is_its_text() -> None:
    assert choose(NAME) == "red heart"
    assert choose(FieldCaptionSpec("names.de")) == "rotes Herz"
    assert choose(FieldCaptionSpec(""), fields="the text itself") == "the text itself"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("names.enn", "key: there is no field 'names.enn'; 'names' has en, de. Did you mean 'en'?"),
        ("nams.en", "key: there is no field 'nams.en'; the sample has names, keywords, count. Did you mean 'names'?"),
        ("names.en.x", "key: there is no field 'names.en.x'; 'names.en' has no fields."),
        ("names", "key: FieldCaptionSpec.field 'names' must be a text, but is dict"),
        ("keywords.en", "key: FieldCaptionSpec.field 'keywords.en' must be a text, but is list"),
        ("", "key: FieldCaptionSpec.field '' must be a text, but is dict"),
    ],
)
def test_a_field_that_is_not_there_or_no_text_is_refused(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(FieldCaptionSpec(path))
    assert str(caught.value).startswith(message)


def test_a_text_member_has_no_fields() -> None:
    with pytest.raises(InputError, match="key: there is no field 'names'; the sample has no fields"):
        lookup("just text", "names", "key")
    assert lookup(FIELDS, "", "key") is FIELDS


def test_sampled_words_are_some_in_any_order() -> None:
    found = many(WORDS)
    sizes = Counter(caption.count(", ") + 1 for caption in found.elements())
    assert set(sizes) == {1, 2, 3}
    assert all(about(size, 2000 / 3) for size in sizes.values())
    first = Counter(caption.split(", ")[0] for caption in found.elements())
    assert all(about(first[word], 500) for word in FIELDS["keywords"]["en"])
    assert all(len(set(caption.split(", "))) == len(caption.split(", ")) for caption in found)


def test_sampled_words_keep_to_least_and_most() -> None:
    assert {caption.count(", ") for caption in many(SampledCaptionSpec("keywords.en", 2, 2), 50)} == {1}
    every = SampledCaptionSpec("keywords.en", 9, 12, separator=" ")  # more than there are: all
    assert {len(caption.split(" ")) for caption in many(every, 50)} == {4}


def test_an_empty_list_has_another_text_stand_in() -> None:
    assert choose(SampledCaptionSpec("keywords.de", otherwise="names.de")) == "rotes Herz"
    with pytest.raises(
        InputError, match=r"key: SampledCaptionSpec.field 'keywords.de' must be a list of texts, but is"
    ):
        choose(SampledCaptionSpec("keywords.de"))


@pytest.mark.parametrize("value", ["text", 3, None, [1, 2], ["a", None], {"a": "b"}])
def test_sampling_from_what_is_no_list_of_texts_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"SampledCaptionSpec.field 'words' must be a list of texts"):
        choose(SampledCaptionSpec("words", otherwise="words"), fields={"words": value})


def test_joined_captions_follow_each_other() -> None:
    parts = (NAME, FieldCaptionSpec("names.de"))
    assert choose(JoinedCaptionSpec(parts)) == "red heart, rotes Herz"
    assert choose(JoinedCaptionSpec(parts, " | ")) == "red heart | rotes Herz"
    twice = many(JoinedCaptionSpec((SampledCaptionSpec("keywords.en", 1, 1),) * 2, "/"), 200)
    assert len(twice) == 16, "each part draws for itself"


def test_mixed_captions_are_chosen_by_weight() -> None:
    choices = (NAME, FieldCaptionSpec("names.de"), FieldCaptionSpec("keywords.nothing"))
    found = many(MixedCaptionSpec(choices, (1.0, 3.0, 0.0)))
    assert set(found) == {"red heart", "rotes Herz"}
    assert about(found["red heart"], 500)
    even = many(MixedCaptionSpec(choices[:2]))
    assert about(even["red heart"], 1000)


def test_dropped_words_leave_one_at_least() -> None:
    name = FieldCaptionSpec("text")
    fields = {"text": "a b c d"}
    spec = WordDropoutCaptionSpec(name, 0.5)
    found = Counter(choose(spec, position, fields) for position in range(2000))
    assert set().union(*(caption.split(" ") for caption in found)) == {"a", "b", "c", "d"}
    assert min(len(caption.split(" ")) for caption in found) == 1
    assert about(found["a b c d"], 2000 / 16)
    assert all(caption.split(" ") == sorted(caption.split(" ")) for caption in found), "in order"
    assert choose(WordDropoutCaptionSpec(name, 0.0), fields=fields) == "a b c d"
    assert {choose(spec, p, {"text": "one"}) for p in range(50)} == {"one"}
    assert {choose(spec, p, {"text": ""}) for p in range(5)} == {""}


def test_captions_are_seeded() -> None:
    assert [choose(WORDS, p) for p in range(20)] == [choose(WORDS, p) for p in range(20)]
    assert [choose(WORDS, p) for p in range(20)] != [choose(WORDS, p + 1) for p in range(20)]


CHANGES: list[tuple[CaptionSpec, dict[str, Any]]] = [
    (NAME, {"field": "names.de"}),
    (WORDS, {"field": "keywords.more"}),
    (WORDS, {"least": 3}),
    (WORDS, {"most": 1}),
    (WORDS, {"separator": "; "}),
    (SampledCaptionSpec("keywords.de", otherwise="names.en"), {"otherwise": "names.de"}),
    (JoinedCaptionSpec((NAME, NAME)), {"parts": (NAME,)}),
    (JoinedCaptionSpec((NAME, NAME)), {"separator": "-"}),
    (MixedCaptionSpec((NAME,)), {"choices": (WORDS,)}),
    (MixedCaptionSpec((NAME, WORDS)), {"weights": (1.0, 0.0)}),
    (WordDropoutCaptionSpec(WORDS), {"caption": NAME}),
    (WordDropoutCaptionSpec(WORDS), {"probability": 0.8}),
]


@pytest.mark.parametrize(("spec", "change"), CHANGES, ids=str)
def test_every_field_changes_the_captions(spec: CaptionSpec, change: dict[str, Any]) -> None:
    fields = {**FIELDS, "keywords": {**FIELDS["keywords"], "more": ["x", "y"]}}
    other = dataclasses.replace(spec, **change)
    assert [choose(spec, p, fields) for p in range(50)] != [choose(other, p, fields) for p in range(50)]


def test_every_field_is_among_those() -> None:
    tried = {(type(spec), name) for spec, change in CHANGES for name in change}
    specs = {type(spec) for spec, _ in CHANGES}
    assert tried == {(spec, field.name) for spec in specs for field in dataclasses.fields(spec)}
    assert specs == set(CaptionSpec.__subclasses__())


REFUSED: list[tuple[Any, str]] = [
    (lambda: SampledCaptionSpec("x", least=0), "SampledCaptionSpec.least must be at least 1, but is 0."),
    (lambda: SampledCaptionSpec("x", 3, 2), "SampledCaptionSpec.most must be at least the least (3), but is 2."),
    (lambda: JoinedCaptionSpec(()), "JoinedCaptionSpec.parts must be at least one caption"),
    (lambda: MixedCaptionSpec(()), "MixedCaptionSpec.choices must be at least one caption"),
    (lambda: MixedCaptionSpec((NAME,), (1.0, 2.0)), "MixedCaptionSpec.weights must be one for each of the 1 choices"),
    (lambda: MixedCaptionSpec((NAME, NAME), (1.0, -1.0)), "MixedCaptionSpec.weights must be at least 0 each"),
    (lambda: MixedCaptionSpec((NAME, NAME), (0.0, 0.0)), "MixedCaptionSpec.weights must be at least 0 each"),
    (lambda: WordDropoutCaptionSpec(NAME, 1.0), "WordDropoutCaptionSpec.probability must be at least 0 and below 1"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
