"""Keys and values that grow: what is held is never changed, and little is copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmformer.nn.cache import AHEAD, KeyValue


def some(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, 3, 2, tokens, 4, generator=torch.Generator().manual_seed(seed)).unbind(0)
    return key, value


def joined(parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.cat(each, dim=2) for each in zip(*parts, strict=True)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_grows_is_what_was_put_one_after_the_other(mode: type[torch.no_grad]) -> None:
    parts = [some(5, 0), *(some(1 + step % 3, step) for step in range(1, 2 * AHEAD))]
    with mode():
        held = KeyValue(*parts[0])
        for number, part in enumerate(parts[1:], 2):
            held = held.followed_by(*part)
            assert all(map(torch.equal, held[:2], joined(parts[:number])))


def test_states_that_go_on_from_one_are_apart() -> None:
    first, one, other, late = (some(tokens, seed) for seed, tokens in enumerate((5, 1, 1, 2)))
    with torch.inference_mode():
        begun = KeyValue(*first).followed_by(*one)
        left, right = begun.followed_by(*other), begun.followed_by(*late)
        again = left.followed_by(*late)
    for state, parts in (
        (begun, [first, one]),
        (left, [first, one, other]),
        (right, [first, one, late]),
        (again, [first, one, other, late]),
    ):
        assert all(map(torch.equal, state[:2], joined(parts)))


def test_rows_that_were_selected_find_their_own_room() -> None:
    first, one, other = (some(tokens, seed) for seed, tokens in enumerate((5, 1, 1)))
    rows = torch.tensor([2, 0, 0])
    with torch.inference_mode():
        begun = KeyValue(*first).followed_by(*one)
        chosen = KeyValue(begun.key.index_select(0, rows), begun.value.index_select(0, rows), begun.room)
        grown = chosen.followed_by(*other)
        kept = begun.followed_by(*other)
    expected = [each[rows] for each in joined([first, one])]
    assert all(torch.equal(x[:, :, :-1], y) for x, y in zip(grown[:2], expected, strict=True))
    assert all(map(torch.equal, kept[:2], joined([first, one, other])))


def test_rows_that_are_taken_stay_in_their_memory() -> None:
    first, one, other = (some(tokens, seed) for seed, tokens in enumerate((5, 1, 1)))
    fewer, back = torch.tensor([2, 0]), torch.tensor([1, 0, 0])
    with torch.inference_mode():
        begun = KeyValue(*first).followed_by(*one)
        place = begun.key.data_ptr()
        taken = begun.take(fewer)
        assert taken.key.data_ptr() == place
        grown = taken.followed_by(*(x[:2] for x in other))
        assert grown.key.data_ptr() == place
        for old in (lambda: begun.followed_by(*other), lambda: begun.take(fewer)):
            with pytest.raises(RuntimeError, match="rows were taken"):
                old()
        more = grown.take(back)  # there are three, where there was room for two
        assert more.key.data_ptr() != place
    expected = [torch.cat((x[fewer], y[:2]), 2) for x, y in zip(joined([first, one]), other, strict=True)]
    assert all(map(torch.equal, grown[:2], expected))
    assert all(torch.equal(x, y[back]) for x, y in zip(more[:2], expected, strict=True))


def test_rows_of_an_earlier_state_are_copied() -> None:
    first, one, other = (some(tokens, seed) for seed, tokens in enumerate((5, 1, 1)))
    rows = torch.tensor([2, 0, 0])
    with torch.inference_mode():
        begun = KeyValue(*first).followed_by(*one)
        late = begun.followed_by(*other)
        taken = begun.take(rows)
    assert all(torch.equal(x, y[rows]) for x, y in zip(taken[:2], joined([first, one]), strict=True))
    assert all(map(torch.equal, late[:2], joined([first, one, other])))


def test_little_is_copied() -> None:
    with torch.inference_mode():
        held = KeyValue(*some(100, 0)).followed_by(*some(1, 1))
        place = held.key.data_ptr()
        for step in range(AHEAD - 1):
            held = held.followed_by(*some(1, step))
            assert held.key.data_ptr() == place
    assert held.key.shape[2] == 100 + AHEAD


def test_a_state_may_leave_the_mode_that_it_was_made_in() -> None:
    first, one, other = (some(1, seed) for seed in range(3))
    with torch.inference_mode():
        held = KeyValue(*first).followed_by(*one)
    with torch.no_grad():
        held = held.followed_by(*other)
    assert all(map(torch.equal, held[:2], joined([first, one, other])))
