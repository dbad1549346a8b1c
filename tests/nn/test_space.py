"""The space of the contract holds every part that exists, and the covering array covers it."""

from __future__ import annotations

import dataclasses
import gc
import itertools

import nn_reference
import pytest
from contract import (
    FACTORS,
    MASKS,
    MIXERS,
    POSITIONS,
    REFUSED,
    TABLES,
    Case,
    concrete_specs,
    covering_array,
    full_product,
    make_inputs,
    refused,
)

from mmformer.errors import InputError
from mmformer.nn.feedforward import FeedForwardSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.norm import NormSpec
from mmformer.nn.position import PositionSpec
from mmformer.nn.resampler import ResamplerSpec
from mmformer.spec import FAMILIES


def names(specs: set[type]) -> str:
    return ", ".join(sorted(spec.__name__ for spec in specs))


def test_every_family_is_in_the_space() -> None:
    # Resamplers are no part of a layer or a pool: test_resampler.py and test_perceiver.py hold them to loops.
    missing = {base for base in FAMILIES if base.__module__.startswith("mmformer.nn.")} - {*TABLES, ResamplerSpec}
    assert not missing, f"No contract is checked for {names(missing)}: give it a table in tests/nn/contract.py."


@pytest.mark.parametrize("base", TABLES, ids=lambda base: base.__name__)
def test_every_part_is_in_the_space(base: type) -> None:
    name, table = TABLES[base]
    missing = concrete_specs(base) - {type(spec) for spec in table.values()}
    assert not missing, f"No contract is checked for {names(missing)}: add an entry to {name} in tests/nn/contract.py."


@pytest.mark.parametrize(
    ("base", "meanings"),
    [
        (MixerSpec, "MIXERS"),
        (PositionSpec, "POSITIONS"),
        (FeedForwardSpec, "FEEDFORWARDS"),
        (NormSpec, "NORMS"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_part_has_a_reference_meaning(base: type, meanings: str) -> None:
    missing = concrete_specs(base) - set(getattr(nn_reference, meanings))
    assert not missing, f"{names(missing)} has no meaning in loops: add it to {meanings} in tests/nn/nn_reference.py."


def test_a_new_part_is_noticed() -> None:
    new = type("NewSpec", (MixerSpec,), {"__module__": "mmformer.nn.new", "build": None, "abilities": None})
    assert new in concrete_specs(MixerSpec)
    assert MixerSpec not in concrete_specs(MixerSpec)  # abstract
    assert PositionSpec in concrete_specs(PositionSpec)  # no position
    del new
    gc.collect()
    assert "NewSpec" not in names(concrete_specs(MixerSpec))


def test_the_array_covers_every_pair() -> None:
    cases = covering_array()
    assert cases == covering_array.__wrapped__(), "another call, another array"
    for (a, levels), (b, others) in itertools.combinations(FACTORS.items(), 2):
        met = {(getattr(case, a), getattr(case, b)) for case in cases}
        wanted = {(x, y) for x in levels for y in others if frozenset({(a, x), (b, y)}) not in REFUSED}
        assert met == wanted


def test_what_is_left_out_is_refused() -> None:
    for pair in REFUSED:
        row = {name: levels[0] for name, levels in FACTORS.items()} | dict(pair)
        with pytest.raises(InputError):
            case = Case(**row)
            make_inputs(case)(case.spec.build().double())


def test_the_full_product_is_every_mixer_position_and_mask_that_is_not_refused() -> None:
    factors = ("mixer", "position", *MASKS)
    wanted = {
        row
        for row in itertools.product(*(FACTORS[name] for name in factors))
        if not refused(dict(zip(factors, row, strict=True)))
    }
    cases = [case for mixer, position in itertools.product(MIXERS, POSITIONS) for case in full_product(mixer, position)]
    assert len(cases) == len(wanted) > 1000
    assert {tuple(getattr(case, name) for name in factors) for case in cases} == wanted
    assert not any(refused(dataclasses.asdict(case)) for case in cases)
    for name in FACTORS:
        assert {getattr(case, name) for case in cases} == set(FACTORS[name]), f"a level of {name} was never drawn"
