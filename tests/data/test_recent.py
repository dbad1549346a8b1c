"""What is kept of late: as much as takes turns, and no more for long."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmformer.data.recent import Recent


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(1, 20), st.integers(1, 12))
def test_it_says_what_was_made_and_keeps_to_its_room(numbers: list[int], questions: int, most: int) -> None:
    recent = Recent(lambda number: number * number, questions, most)
    for number in numbers:
        assert recent(number) == number * number
        assert len(recent) <= max(2, most)


def test_what_takes_turns_is_made_once_and_what_is_left_is_dropped() -> None:
    made = Counter[int]()

    def make(number: int) -> int:
        made[number] += 1
        return number

    recent = Recent(make, questions=50, most=1000)
    for first in range(0, 100, 10):  # ten lanes, each of which goes from one shard to the next after 60 reads
        for _ in range(60):
            for lane in range(10):
                recent(first + lane)
        assert len(recent) <= 20
    assert set(made.values()) == {1}
    for _ in range(101):
        recent(0)
    assert len(recent) == 1
