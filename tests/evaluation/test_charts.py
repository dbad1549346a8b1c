"""The charts of a report: what is drawn where."""

from __future__ import annotations

import numpy as np
import torch

from mmformer.evaluation.charts import draw_confusion, draw_curves, most_confused
from mmformer.evaluation.classified import precision_recall
from mmformer.evaluation.details import Classified


def classified(table: list[list[int]]) -> Classified:
    names = tuple(f"class {number}" for number in range(len(table)))
    return Classified("colour", names, torch.tensor(table), [None] * len(table))


def test_the_darkest_square_is_that_of_the_largest_share() -> None:
    image = np.asarray(draw_confusion(classified([[9, 1], [40, 60]]))).astype(int)
    left, top, cell = 150, 160, 44
    shades = [[int(image[top + row * cell + 4, left + column * cell + 4, 0]) for column in (0, 1)] for row in (0, 1)]
    assert shades[0][0] < shades[1][1] < shades[1][0] < shades[0][1], "by rows, not by counts"


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    table = torch.eye(60, dtype=torch.int64) * 5
    table[7, 9], table[30, 2] = 4, 3
    many = classified(table.tolist())
    assert most_confused(many, 4) == [2, 7, 9, 30]
    assert most_confused(many, 100) == list(range(60))
    assert draw_confusion(many).width <= 150 + 40 * 16 + 20


def test_a_curve_runs_from_the_left_to_the_right() -> None:
    positive = torch.tensor([True, False, True, False])
    curve = precision_recall(torch.tensor([4.0, 3, 2, 1]), positive)
    assert curve is not None
    image = np.asarray(draw_curves([("cat", curve)])).astype(int)
    blue = (np.abs(image - np.array([47, 111, 159])).sum(axis=2) < 120)[24:410, 60:422]
    rows = [int(np.flatnonzero(blue[:, column]).mean()) for column in (60, 300)]
    assert abs(rows[0] - 10) <= 2, "precision 1 to recall 1/2"
    assert abs(rows[1] - 130) <= 2, "then 2/3"
