"""What every test shares."""

from __future__ import annotations

import gc
import random

import pytest

pytest.register_assert_rewrite("contract", "contract_checks")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests compute on one thread: workers of pytest-xdist share the cores, and sums come out the same without it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def stand_in_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that is learned from a set, and lies beside it, is not in the project: another one stands in."""
    from tiny import VOCABULARY

    from mmformer.tokenizers.vocabulary import Vocabulary

    load = Vocabulary.load
    monkeypatch.setattr(Vocabulary, "load", lambda path: load(VOCABULARY if str(path).startswith("runs/") else path))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What fixtures draw does not depend on the tests before, but for those that they share one with."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What a test draws depends on none, whichever made its fixtures."""
    _seed()


def _seed() -> None:
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - the one that libraries draw from
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", metavar="FILE", help="write what became of the inputs that tests/hostile tried")
    parser.addoption("--systems", metavar="FILE", help="write what tests/interop measured of named systems")
