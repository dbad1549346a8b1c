"""A cache of what is asked for again and again for a while, and then no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values by number, made when they are asked for and dropped when none of the last questions was for them.

    A reader of one lane needs the indexes of two shards, one of a hundred lanes those of two hundred, and neither knows
    how many it is: this keeps as many as there are. There are two generations. What is asked for is among the young;
    after some questions the young become the old, and the old are dropped.

    Args:
        make: the value of a number.
        questions: a value is kept for at least so many that are not for it, and at most for twice as many.
        most: values kept, however few questions there were; at least two are.
    """

    def __init__(self, make: Callable[[int], Value], questions: int, most: int) -> None:
        self._make, self._questions, self._most = make, questions, max(1, most // 2)
        self._asked = 0
        self._young: dict[int, Value] = {}
        self._old: dict[int, Value] = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def __call__(self, number: int) -> Value:
        self._asked += 1
        if self._asked > self._questions:
            self._turn()
        young = self._young
        if number not in young:
            value = self._old[number] if number in self._old else self._make(number)
            if len(young) >= self._most:
                self._turn()
            self._young[number] = value
            return value
        return young[number]

    def _turn(self) -> None:
        self._asked, self._old, self._young = 0, self._young, {}
