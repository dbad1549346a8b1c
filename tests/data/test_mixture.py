"""Mixtures: exact shares, spread evenly, in the lanes that ranks take, and known at any position at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data.mixture import PERIOD, Interleaving, Mixture
from mmformer.errors import InputError

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(WEIGHTS, st.integers(0, 3 * PERIOD))
def test_turns_are_counted_without_walking(weights: list[float], start: int) -> None:
    turns = Interleaving(weights)
    had: Counter[int] = Counter(turns.at(turn).chosen for turn in range(start))
    for turn in range(start, start + 50):
        chosen, before = turns.at(turn)
        assert before == had[chosen]
        had[chosen] += 1


@settings(max_examples=15, deadline=None)
@given(WEIGHTS)
def test_shares_are_the_weights_and_spread_evenly(weights: list[float]) -> None:
    turns = Interleaving(weights)
    chosen = np.array([turns.at(turn).chosen for turn in range(2 * PERIOD)])
    for one, weight in enumerate(weights):
        share = weight / sum(weights)
        had = np.cumsum(chosen == one)
        assert abs(had[-1] - share * 2 * PERIOD) <= 2
        # At no time is one further from its share than a turn for each of the others, and one.
        drift = np.abs(had - share * np.arange(1, 2 * PERIOD + 1))
        assert drift.max() <= len(weights) + 1


def test_a_weight_without_a_turn_is_refused() -> None:
    with pytest.raises(InputError, match=r"The weights 1, 1e-06 differ so much .* in 4096: raise it"):
        Interleaving([1, 1e-6])


def test_one_source_is_itself() -> None:
    mixture = Mixture([3.0], ["pictures"], batch_size=7, lanes=2)
    assert [mixture.locate(p) for p in range(20)] == [(0, p) for p in range(20)]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_every_source_is_read_in_order_in_its_own_lanes(lanes: int) -> None:
    mixture = Mixture([2, 1, 1], ["a", "a", "a"], batch_size=16, lanes=lanes)
    places = [mixture.locate(p) for p in range(16 * 200)]
    for source in range(3):
        own = [place.position for place in places if place.source == source]
        assert own == list(range(len(own))), "each once, in order"
    assert all(place.position % lanes == p % lanes for p, place in enumerate(places))
    counts = Counter(place.source for place in places)
    assert counts[0] == pytest.approx(1600, abs=2 * lanes)
    for update in range(200):
        batch = Counter(place.source for place in places[16 * update : 16 * update + 16])
        assert batch[0] == pytest.approx(8, abs=2 * lanes)


def test_kinds_take_turns_by_whole_batches() -> None:
    mixture = Mixture([1, 2, 1], ["pictures", "sounds", "pictures"], batch_size=8, lanes=2)
    places = [mixture.locate(p) for p in range(8 * 100)]
    batches = [{place.source for place in places[start : start + 8]} for start in range(0, 800, 8)]
    assert all(batch in ({0, 2}, {1}) for batch in batches)
    assert sum(batch == {1} for batch in batches) == 50
    first = mixture.first_updates()
    assert [batches[update] for update in first] == [{0, 2}, {1}]
    assert sorted(first) == [0, 1]
    assert batches[:4] in ([{0, 2}, {1}] * 2, [{1}, {0, 2}] * 2), "in turn"
    for source in range(3):
        own = [place.position for place in places if place.source == source]
        assert own == list(range(len(own)))


def test_a_batch_that_the_lanes_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.batch_size is 10, which data.order.lanes, 4, .* multiple of 4"):
        Mixture([1, 1], ["a", "a"], batch_size=10, lanes=4)
