"""The catalogue says of every part what a user has to know to choose it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mmformer.catalogue import Entry, catalogue
from mmformer.nn.mixer import MixerSpec
from mmformer.spec import concrete

CATALOGUE = {entry.name: entry for entry in catalogue()}


OUTSIDE = {"heads", "ratio", "depth", "experts", "frames", "window", "bands", "tokens"}
"""What a part's cost may speak of that is no option of its own, but of what it is in or is handed."""


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_a_part_says_what_it_is_what_it_costs_and_where_it_is_from(entry: Entry) -> None:
    assert len(entry.what) > 10
    assert entry.what.endswith(".")
    assert re.search(r"(19|20)\d\d", entry.source), "no year"
    fields = {option.name for option in entry.options}
    named = set(re.findall(r"[a-z_]{4,}", entry.cost)) - {"that", "narrowest", "theirs", "model"}
    unknown = named - fields - OUTSIDE
    assert not unknown, f"its cost speaks of {unknown}, which are none of its options"
    assert all(option.meaning for option in entry.options)


def test_every_mixer_is_in_it_with_its_abilities() -> None:
    for spec in concrete(MixerSpec):
        entry = CATALOGUE[spec.__name__]
        assert entry.kind == "Mixer"
        assert set(entry.supports) - {"2-D"} == set(spec().abilities)


def test_options_have_the_defaults_of_the_fields() -> None:
    attention = CATALOGUE["AttentionSpec"]
    spec = next(spec for spec in concrete(MixerSpec) if spec.__name__ == "AttentionSpec")
    assert {option.name: option.default for option in attention.options} == {
        field.name: field.default for field in dataclasses.fields(spec)
    }
