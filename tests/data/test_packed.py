"""Texts and rows in one piece of memory: what went in, whatever it is, and little beside it."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmformer.data.packed import PackedRows, PackedTexts

NUMBERS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.text(st.characters())))
def test_texts_are_those_that_went_in(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert packed == texts
    assert (len(packed), packed[1:], packed[::-2]) == (len(texts), tuple(texts[1:]), tuple(texts[::-2]))
    assert [packed[place - len(texts)] for place in range(len(texts))] == texts


@given(st.lists(st.lists(NUMBERS).map(tuple)))
def test_rows_are_those_that_went_in(rows: list[tuple[int, ...]]) -> None:
    assert list(PackedRows(rows)) == rows


def test_places_that_are_not_there() -> None:
    for packed in (PackedTexts(["a"]), PackedRows([(1,)])):
        for place in (1, -2):
            with pytest.raises(IndexError):
                packed[place]
    with pytest.raises(OverflowError):
        PackedRows([(2**63,)])


def test_ten_thousand_samples_take_less_than_a_megabyte() -> None:
    keys = [f"part-{number // 100:05d}/{number:08d}" for number in range(10_000)]
    rows = [(0, 1000 * number, 400, 1, 1000 * number + 512, 300) for number in range(10_000)]
    tracemalloc.start()
    packed = PackedTexts(keys), PackedRows(rows), PackedTexts(key[:16] for key in keys)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.2e6, "what they say is 830 kB"
    assert packed[0][9_999] == "part-00099/00009999"
