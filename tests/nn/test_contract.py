"""The contract over the space: a covering array of pairs here, the full product in the slow suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract import MIXERS, POSITIONS, Case, covering_array, full_product
from contract_checks import CHECKS

ARRAY = covering_array()


@pytest.mark.parametrize("case", ARRAY, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Case], None], case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_over_the_full_product(check: Callable[[Case], None], mixer: str, position: str) -> None:
    for case in full_product(mixer=mixer, position=position):
        try:
            check(case)
        except Exception as error:
            error.add_note(f"The case: {case!r}")
            raise
