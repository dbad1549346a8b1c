"""What the schedules say at each step, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmformer.errors import InputError
from mmformer.training.schedule import (
    ConstantScheduleSpec,
    CosineScheduleSpec,
    InverseSquareRootScheduleSpec,
    LinearScheduleSpec,
    ScheduleSpec,
)

ALL = (CosineScheduleSpec, LinearScheduleSpec, ConstantScheduleSpec, InverseSquareRootScheduleSpec)


def factors(spec: ScheduleSpec, steps: int) -> list[float]:
    return [spec.factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("kind", ALL)
def test_warm_up_rises_evenly_to_the_peak(kind: type[ScheduleSpec]) -> None:
    assert factors(kind(4), 20)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("kind", ALL)
def test_cool_down_falls_evenly_from_where_it_is(kind: type[ScheduleSpec]) -> None:
    found = factors(kind(4, cooldown_steps=5), 29)
    assert found[:24] == pytest.approx(factors(kind(4), 24)), "before it, as in a run that ends there"
    stands = kind(4).factor(24, 24)
    assert found[24:] == pytest.approx([stands * left / 6 for left in (5, 4, 3, 2, 1)])


def test_cosine_falls_to_its_end() -> None:
    found = factors(CosineScheduleSpec(4, final=0.1), 24)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert found[4:] == pytest.approx(expected)
    assert CosineScheduleSpec(4, final=0.1).factor(24, 24) == pytest.approx(0.1)
    assert CosineScheduleSpec(4, final=0.1).factor(1000, 24) == pytest.approx(0.1), "past the end it stays there"
    assert factors(CosineScheduleSpec(), 5)[0] == 1.0
    assert found[4:] == sorted(found[4:], reverse=True)


def test_linear_falls_to_its_end() -> None:
    assert factors(LinearScheduleSpec(2, final=0.5), 7)[2:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert LinearScheduleSpec(2).factor(9, 7) == 0, "past the end it stays there"


def test_constant_stays() -> None:
    assert factors(ConstantScheduleSpec(2), 8)[2:] == [1.0] * 6
    assert factors(ConstantScheduleSpec(), 3) == [1.0] * 3


def test_warm_up_stable_decay() -> None:
    """WSD: up in a straight line, level, down in one; longer runs are the same until the shorter ones cool down."""
    found = factors(ConstantScheduleSpec(3, cooldown_steps=4), 12)
    assert found == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 5, 0.8, 0.6, 0.4, 0.2])
    assert factors(ConstantScheduleSpec(3, cooldown_steps=4), 40)[:8] == pytest.approx(found[:8])


def test_inverse_square_root_is_the_papers() -> None:
    """Vaswani et al. 2017, equation 3, as a share of its peak, with updates counted from 1."""
    warmup, found = 10, factors(InverseSquareRootScheduleSpec(9), 60)
    assert found == pytest.approx([min(n**-0.5, n * warmup**-1.5) * warmup**0.5 for n in range(1, 61)])
    assert InverseSquareRootScheduleSpec(2, timescale=100).factor(102, 500) == pytest.approx(math.sqrt(0.5))
    assert factors(InverseSquareRootScheduleSpec(9), 60) == factors(InverseSquareRootScheduleSpec(9), 600)[:60]


@pytest.mark.parametrize("kind", ALL)
def test_a_warm_up_longer_than_the_run_never_ends(kind: type[ScheduleSpec]) -> None:
    assert factors(kind(100), 10) == pytest.approx([(step + 1) / 101 for step in range(10)])


REFUSED: list[tuple[Any, str]] = [
    (lambda: CosineScheduleSpec(-1), "CosineScheduleSpec.warmup_steps must be at least 0"),
    (lambda: ConstantScheduleSpec(0, -1), "ConstantScheduleSpec.cooldown_steps must be at least 0"),
    (lambda: CosineScheduleSpec(final=1.1), "CosineScheduleSpec.final must be from 0 to 1"),
    (lambda: LinearScheduleSpec(final=-0.1), "LinearScheduleSpec.final must be from 0 to 1"),
    (lambda: InverseSquareRootScheduleSpec(timescale=0), "InverseSquareRootScheduleSpec.timescale must be None or at"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
