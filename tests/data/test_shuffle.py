"""Orders that are looked up: each number once, the same for ever, and as if drawn from all orders."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data.seeding import permutation
from mmformer.data.shuffle import TABLE, Feistel, shuffle


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20_000), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_each_number_stands_at_one_place(count: int, seed: int, where: int) -> None:
    network = Feistel(count, seed, "x", where)
    whole = np.asarray(network)
    assert np.array_equal(np.sort(whole), np.arange(count))
    some = range(0, count, max(1, count // 50))
    assert [network[place] for place in some] == whole[:: max(1, count // 50)].tolist(), "numbers and arrays agree"


def test_counts_that_no_table_could_hold_are_orders_too() -> None:
    network = Feistel(10**15, 0, "x")
    found = {network[place] for place in range(3000)}
    assert len(found) == 3000
    assert 0 <= min(found) < 10**13
    assert 99 * 10**13 < max(found) < 10**15


def test_few_numbers_are_a_table_and_many_are_keys() -> None:
    assert np.asarray(shuffle(TABLE, 3, "x", 5)).tolist() == permutation(TABLE, 3, "x", 5).tolist()
    assert isinstance(shuffle(TABLE + 1, 3, "x", 5), Feistel)


def test_golden_networks_never_change() -> None:
    assert np.asarray(Feistel(10, 3, "x")).tolist() == [7, 2, 8, 5, 1, 6, 9, 4, 3, 0]
    large = Feistel(10**9, 11, "order", 2)
    assert [large[place] for place in (0, 1, 10**9 - 1)] == [387717010, 922366888, 10649103]


def test_names_seeds_and_places_give_other_orders() -> None:
    whole = [np.asarray(Feistel(9000, *name)) for name in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2))]
    assert np.abs(np.corrcoef(whole) - np.eye(4)).max() < 0.05


def test_an_order_is_as_one_drawn_from_all() -> None:
    """Where numbers go, how far, and what stands beside what: against what a full shuffle would have on average."""
    count, keys, cells = 5000, 200, 10
    places = np.arange(count)
    grid, fixed, ascending, moved, lagged = np.zeros((cells, cells)), 0, 0, [], []
    for key in range(keys):
        whole = np.asarray(Feistel(count, 0, "quality", key))
        np.add.at(grid, (places * cells // count, whole * cells // count), 1)
        fixed += int((whole == places).sum())
        ascending += int((np.diff(whole) == 1).sum())
        moved.append(np.abs(whole - places).mean() / count)
        lagged.append(np.corrcoef(whole[:-1], whole[1:])[0, 1])
    expected = keys * count / cells**2
    # Rows and columns have their sums: (cells - 1)² degrees of freedom; five standard deviations.
    assert ((grid - expected) ** 2 / expected).sum() < (cells - 1) ** 2 + 5 * np.sqrt(2) * (cells - 1)
    assert abs(fixed / keys - 1) < 5 / np.sqrt(keys), "one number on average stays where it is"
    assert abs(ascending / keys - 1) < 5 / np.sqrt(keys), "and one pair of neighbours stays one"
    assert abs(np.mean(moved) - 1 / 3) < 0.002
    assert abs(np.mean(lagged)) < 5 / np.sqrt(keys * count)
