"""The contract over the space: a covering array of pairs here; mixers × positions × masks, all of them, when slow."""

from __future__ import annotations

import pytest
from contract import MIXERS, POSITIONS, Case, covering_array, full_product
from contract_checks import CHECKS, Check

ARRAY = covering_array()


@pytest.mark.parametrize(("check", "case"), [(check, case) for check in CHECKS for case in check.cases(ARRAY)], ids=str)
def test_contract(check: Check, case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract_over_the_full_product(check: Check, mixer: str, position: str) -> None:
    for case in check.cases(full_product(mixer, position)):
        try:
            check(case)
        except Exception as error:
            error.add_note(f"The case: {case!r}")
            raise
