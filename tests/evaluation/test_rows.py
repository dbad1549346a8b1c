"""Rows of several processes are those of one."""

from __future__ import annotations

import torch

from mmformer.evaluation.rows import Rows, interleave


def test_rows_of_several_are_those_of_one() -> None:
    parts = [
        {"x": torch.arange(size) + 10 * size, "word": [f"{size}{n}" for n in range(size)]} for size in (3, 1, 2, 4, 1)
    ]
    whole = Rows()
    for part in parts:
        whole.add(part)
    for number in (1, 2, 3, 7):
        shared = [Rows() for _ in range(number)]
        for place, part in enumerate(parts):
            shared[place % number].add(part)
        joined = interleave(shared)
        assert torch.equal(joined.tensor("x"), whole.tensor("x"))
        assert joined.values("word") == whole.values("word")


def test_rows_know_what_they_hold() -> None:
    rows = Rows()
    assert not rows
    rows.add({"x": torch.zeros(0, 2)})
    assert not rows
    rows.add({"x": torch.zeros(1, 2)})
    assert rows
    assert "x" in rows
    assert "y" not in rows
