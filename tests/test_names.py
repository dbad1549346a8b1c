"""Patterns of names: what they fit, and what to say of one that fits nothing."""

from __future__ import annotations

import pytest

from mmformer.errors import InputError
from mmformer.names import matching, whole_parts

NAMES = ("stacks.image.layers.0.mixer.qkv", "stacks.image.layers.0.mixer.out", "heads.Colour.projection")


def test_a_star_stands_for_anything_and_case_counts() -> None:
    assert matching("f", NAMES, "stacks.*") == list(NAMES[:2])
    assert matching("f", NAMES, "*.qkv") == [NAMES[0]]
    assert matching("f", NAMES, NAMES[2]) == [NAMES[2]]
    with pytest.raises(InputError, match=r"Did you mean 'heads\.Colour\.projection'\?"):
        matching("f", NAMES, "heads.colour.projection")


def test_a_pattern_that_fits_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"f: no linear map of the model has a name like 'stack\.\*'\. Did you mean 's"
    ):
        matching("f", NAMES, "stack.*", "linear map")
    with pytest.raises(InputError, match=r"like 'zzz'\. The first is called stacks\.image\..*qkv; all are in X\."):
        matching("f", NAMES, "zzz", more="; all are in X")
    with pytest.raises(InputError, match=r"^f: no parameter of the model has a name like 'a'\.$"):
        matching("f", (), "a")


def test_what_is_all_of_a_part_is_told_as_that_part() -> None:
    own = ["stacks.text.a.weight", "stacks.text.b", "stacks.image.0.qkv.bias", "heads.kind.bias", "heads.scale"]
    others = ["stacks.image.0.qkv.weight", "heads.other.bias"]
    expected = ["stacks.text.*", "stacks.image.0.qkv.bias", "heads.kind.bias", "heads.scale"]
    assert whole_parts(own, others) == expected
    assert whole_parts([], others) == []
