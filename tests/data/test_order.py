"""The sample order: every sample once per epoch, the same from wherever one starts, and the same for ever."""

from __future__ import annotations

import heapq
import pickle
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data import order as order_module
from mmformer.data.order import Order, OrderSpec, Place, _owners
from mmformer.data.seeding import derive, generator, permutation
from mmformer.data.shuffle import TABLE, shuffle
from mmformer.errors import InputError


@st.composite
def orders(draw: st.DrawFn) -> Order:
    counts = draw(st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(any))
    lanes = draw(st.integers(1, sum(count > 0 for count in counts)))
    shuffle = draw(st.booleans())
    block = draw(st.integers(1, 40)) if shuffle else OrderSpec.block
    spec = OrderSpec(lanes=lanes, block=block, shuffle=shuffle)
    return spec.build(counts, draw(st.integers(-(2**70), 2**70)))


def lane_epoch(order: Order, lane: int, epoch: int) -> list[Place]:
    length, lanes = order.lengths[lane], order.spec.lanes
    return [order.locate((epoch * length + turn) * lanes + lane) for turn in range(length)]


@settings(max_examples=150, deadline=None)
@given(orders())
def test_each_lane_reads_each_of_its_samples_once_per_epoch(order: Order) -> None:
    everything = []
    for lane in range(order.spec.lanes):
        own = sorted((int(shard), row) for shard in order.shards[lane] for row in range(order.counts[shard]))
        for epoch in (0, 1, 7):
            places = lane_epoch(order, lane, epoch)
            assert sorted((place.shard, place.row) for place in places) == own
            assert {place.epoch for place in places} == {epoch}
        everything += own
    assert sorted(everything) == [(shard, row) for shard, count in enumerate(order.counts) for row in range(count)]
    assert len(order) == len(everything) == sum(order.counts)


@settings(max_examples=100, deadline=None)
@given(orders(), st.lists(st.integers(0, 10**15) | st.integers(0, 200), max_size=20))
def test_a_position_is_found_alike_by_any_path(order: Order, positions: list[int]) -> None:
    walked = {position: order.locate(position) for position in range(201)}
    for position in positions:
        fresh = pickle.loads(pickle.dumps(order)).locate(position)  # as a worker gets it, without caches
        assert order.locate(position) == fresh == walked.get(position, fresh)
    assert all(order.locate(position) == place for position, place in reversed(walked.items()))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 6000), min_size=2, max_size=5).filter(lambda counts: sum(counts) > TABLE and min(counts)),
    st.integers(TABLE + 1, 3 * TABLE),
    st.integers(0, 2**63),
)
def test_blocks_beyond_a_table_have_each_sample_once_too(counts: list[int], block: int, seed: int) -> None:
    order = OrderSpec(block=block).build(counts, seed)
    for epoch in (0, 3):
        places = [tuple(place[1:]) for place in lane_epoch(order, 0, epoch)]
        assert sorted(places) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    fresh = pickle.loads(pickle.dumps(order))
    assert [fresh.locate(position) for position in (7, sum(counts) + 1)] == [
        order.locate(position) for position in (7, sum(counts) + 1)
    ]


def test_more_shards_in_a_lane_than_a_table_holds_are_each_read_once() -> None:
    order = OrderSpec(block=3).build([1] * (TABLE + 5) + [2] * 3, seed=4)
    places = lane_epoch(order, 0, 1)
    assert len({(place.shard, place.row) for place in places}) == len(places) == TABLE + 11


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 9))
def test_each_shard_goes_to_the_lane_that_has_least(sizes: list[int], lanes: int) -> None:
    sizes = sorted(sizes, reverse=True)
    had = [(0, lane) for lane in range(lanes)]
    expected = []
    for size in sizes:
        total, lane = had[0]
        expected.append(lane)
        heapq.heapreplace(had, (total + size, lane))
    assert _owners(np.array(sizes), lanes).tolist() == expected


def test_golden_order_never_changes() -> None:
    order = OrderSpec(lanes=2, block=4).build([5, 0, 7, 3], seed=11)
    assert [shards.tolist() for shards in order.shards] == [[2], [0, 3]]
    assert [tuple(order.locate(position)[1:]) for position in range(24)] == [
        *[(2, 1), (0, 0), (2, 0), (0, 1), (2, 2), (0, 4), (2, 5), (0, 3)],
        *[(2, 3), (3, 0), (2, 4), (0, 2), (2, 6), (3, 1), (2, 0), (3, 2)],
        *[(2, 4), (0, 0), (2, 2), (3, 0), (2, 3), (3, 2), (2, 1), (3, 1)],
    ]
    assert order.locate(10**6) == Place(71428, 2, 5)
    assert order.locate(10**15) == Place(71428571428571, 2, 3)
    large = OrderSpec().build([10**4], seed=0)
    assert [large.locate(position).row for position in (0, 1, 4095, 4096, 10**4)] == [4003, 3243, 6372, 4981, 1790]


def test_golden_streams_never_change() -> None:
    raw = generator(3, "crop", 7).bit_generator.random_raw(3)
    assert raw.tolist() == [4188585428804480406, 6365642652713727647, 17038563804933081040]
    assert derive(3, "mask", 7) == 2449291944107641406
    assert permutation(10, 3, "x").tolist() == [9, 3, 4, 7, 0, 5, 8, 1, 2, 6]


def test_streams_of_different_names_differ() -> None:
    names = [
        *[(seed, purpose, position) for seed in (-1, 0, 1) for purpose in ("a", "b", "") for position in range(50)],
        *[
            (0, "a", 1, 2),
            (0, "a", 12),
            (0, "a:1", 2),
            (0, "a,1", 2),
            (1, "a", 0, 2),
            (10, "a", 2),
            (0, "a"),
            (2**64, "a"),
        ],
    ]
    firsts = {int(generator(*name).bit_generator.random_raw()) for name in names}
    assert len(firsts) == len({derive(*name) for name in names}) == len(set(names))
    assert generator(5, "flip", 9).random(4).tolist() == generator(np.int64(5), "flip", np.int32(9)).random(4).tolist()


def test_neighbouring_streams_are_independent_and_uniform() -> None:
    draws = np.array([generator(0, "flip", position).random(4) for position in range(4000)])
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.06
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.06


def test_an_epoch_shorter_than_a_block_is_wholly_shuffled_and_reshuffled() -> None:
    order = OrderSpec(block=1000).build([500, 500], seed=1)
    flat = np.array([[shard * 500 + row for _, shard, row in lane_epoch(order, 0, epoch)] for epoch in range(3)])
    correlation = np.corrcoef(np.vstack([flat, np.arange(1000)]))
    assert np.abs(correlation - np.eye(4)).max() < 0.12
    other = OrderSpec(block=1000).build([500, 500], seed=2)
    assert lane_epoch(other, 0, 0) != lane_epoch(order, 0, 0)


def test_reading_stays_within_a_block_of_consecutive_shards() -> None:
    order = OrderSpec(lanes=2, block=10).build([10] * 40, seed=5)
    for lane in range(2):
        shards = [place.shard for place in lane_epoch(order, lane, 3)]
        assert all(len(set(shards[start : start + 10])) <= 3 for start in range(len(shards) - 10))
        assert list(dict.fromkeys(shards)) != sorted(set(shards)), "shards come in a new order"


def test_blocks_do_not_keep_the_same_samples_together() -> None:
    order = OrderSpec(block=50).build([1000], seed=5)
    first = [{place.row for place in lane_epoch(order, 0, epoch)[100:150]} for epoch in range(4)]
    assert len({frozenset(rows) for rows in first}) == 4
    starts = {min(place.row for place in lane_epoch(order, 0, epoch)[:5]) // 50 for epoch in range(4)}
    assert starts <= {0, 1}


def test_without_shuffling_the_manifest_is_read_in_order() -> None:
    order = OrderSpec(shuffle=False).build([2, 0, 3], seed=5)
    once = [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert [tuple(order.locate(position)[1:]) for position in range(10)] == once * 2


def test_lanes_share_the_samples_evenly() -> None:
    counts = np.random.default_rng(0).integers(1, 2000, 200).tolist()
    order = OrderSpec(lanes=16).build(counts, seed=0)
    assert max(order.lengths) - min(order.lengths) < 0.02 * np.mean(order.lengths)


def test_the_work_does_not_grow_with_the_number_of_samples() -> None:
    order = OrderSpec(lanes=4, block=64).build([10**13] * 9, seed=0)
    places = [order.locate(position) for position in range(10**17, 10**17 + 400)]
    assert len(set(places)) == 400
    assert all(0 <= place.row < 10**13 for place in places)


@pytest.mark.parametrize("spread", [0, 500])
def test_a_million_shards_take_little_time_and_memory(spread: int) -> None:
    """10⁶ shards of 10⁴ samples, or about, for a rank of 4,096 that reads its lane: see benchmarks/order.py for all."""
    lane, epoch, lanes = 1234, 7, 4096
    counts = 10**4 + np.random.default_rng(0).integers(-spread, spread + 1, 10**6)
    if not spread:  # heaps of numbers take long to be traced
        tracemalloc.start()
    began = time.process_time()
    order = OrderSpec(lanes).build(counts, seed=0)
    assert order.locate(lanes * 10**7 + lane).epoch == 10**7 // order.lengths[lane]
    assert time.process_time() - began < 3, "a fifth of that, as a rule"
    if not spread:
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 10 * 2**20
        assert most < 50 * 2**20
    turns = np.random.default_rng(1).choice(order.lengths[lane], 20_000, replace=False) + epoch * order.lengths[lane]
    places = [order.locate(int(turn) * lanes + lane) for turn in np.sort(turns)]
    assert len(set(places)) == len(places)
    assert {place.epoch for place in places} == {epoch}
    assert {place.shard for place in places} == set(order.shards[lane].tolist()), "samples of all of them are found"
    assert all(0 <= place.row < counts[place.shard] for place in places)
    assert np.array_equal(np.sort(np.concatenate(order.shards)), np.arange(10**6)), "each shard is in one lane"
    assert len(order) == counts.sum()
    assert len(order._epochs) == 2, "two epochs of one lane are all that is kept"


def test_a_shard_is_opened_once_an_epoch_where_two_may_be_open() -> None:
    order = OrderSpec(lanes=3, block=64).build([90, 100, 110] * 12, seed=2)
    for lane in range(3):
        opened, recent = [], OrderedDict[int, None]()
        for place in lane_epoch(order, lane, 2):
            if place.shard not in recent:
                opened.append(place.shard)
                recent[place.shard] = None
            recent.move_to_end(place.shard)
            while len(recent) > 2:
                recent.popitem(last=False)
        assert sorted(opened) == order.shards[lane].tolist()


def test_reading_ahead_shuffles_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a sample, or is mixed into it, is a little later in its lane: maybe in the next block."""
    order = OrderSpec(lanes=2, block=10).build([25] * 4, seed=2)
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(order_module, "shuffle", lambda *name: made.append(name) or shuffle(*name))
    for position in range(400):
        order.locate(position)
        order.locate(position + 2 * 7)
    assert len(made) == len(set(made))


def test_past_a_shard_stands_none_of_it() -> None:
    order = OrderSpec(lanes=2, block=10).build([25] * 10, seed=2)
    for position in range(2 * 60):  # the lanes' epochs have 125 turns
        place = order.locate(position)
        assert order.locate(position + 2 * order.turns_past(place.shard)).shard != place.shard


@pytest.mark.parametrize(
    ("spec", "counts", "message"),
    [
        ({"lanes": 4}, [3, 0, 2], "order.lanes is 4, but only 2 of the 3 shards hold samples.*to 2 or less.*4 shards"),
        ({}, [], "nothing to read: 0 shards"),
        ({}, [0, 0], "nothing to read: 2 shards"),
        ({}, [3, -1], "numbers from 0 up"),
    ],
)
def test_what_cannot_be_ordered_is_refused(spec: dict[str, int], counts: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrderSpec(**spec).build(counts, seed=0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"OrderSpec\.lanes must be at least 1, but is 0"):
        OrderSpec(lanes=0)
    with pytest.raises(InputError, match=r"OrderSpec\.block must be at least 1, but is -1"):
        OrderSpec(block=-1)
    with pytest.raises(InputError, match=r"OrderSpec\.block must be left alone where shuffle is false.*but is 3"):
        OrderSpec(block=3, shuffle=False)
    with pytest.raises(InputError, match="positions start at 0"):
        OrderSpec().build([3], seed=0).locate(-1)
