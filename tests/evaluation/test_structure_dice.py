# SPDX-License-Identifier: Apache-2.0
"""Mean Dice while training, worked out by hand, and as the evaluation's summary has it."""

from __future__ import annotations

import pytest
import torch
from monai.networks import one_hot

from scripts.evaluation.metrics import StructureDice
from scripts.evaluation.report import case_rows, summarise


def volume(*classes):
    return torch.tensor(classes).reshape(1, 1, 1, -1)


def mean_of(*pairs, classes=3):
    metric = StructureDice()
    for prediction, reference in pairs:
        metric([one_hot(prediction, classes, dim=0)], [one_hot(reference, classes, dim=0)])
    return metric.aggregate().item()


FOUND = (volume(0, 1, 1, 2), volume(0, 1, 2, 2))  # 2/3 and 2/3
MISSED = (volume(0, 1, 0, 0), volume(0, 1, 2, 2))  # 1 and 0
INVENTED = (volume(0, 1, 2, 0), volume(0, 1, 0, 0))  # 1 and 0
ABSENT = (volume(0, 1, 0, 0), volume(0, 1, 0, 0))  # 1 and nothing


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([FOUND], 2 / 3),
        ([MISSED], 0.5),
        ([INVENTED], 0.5),
        ([ABSENT], 1.0),
        ([FOUND, INVENTED, ABSENT], ((2 / 3 + 2) / 3 + (2 / 3 + 0) / 2) / 2),
        ([(volume(0, 0), volume(0, 0))], 0.0),
    ],
)
def test_mean_over_cases_and_then_over_classes(pairs, expected):
    assert mean_of(*pairs) == pytest.approx(expected)


def test_it_is_the_summarys_mean_dice():
    draw = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randint(0, 4, (1, 3, 4, 5), generator=draw) for _ in range(2)) for _ in range(4)]
    pairs[1][1][pairs[1][1] == 3] = 0
    names = dict(enumerate("abcd"))
    rows = [row for n, (p, r) in enumerate(pairs) for row in case_rows(str(n), p[0], r[0], (1, 1, 1), names)]
    assert mean_of(*pairs, classes=4) == pytest.approx(summarise(rows, names)["mean_dice"])


def test_it_starts_anew_after_a_reset():
    metric = StructureDice()
    for prediction, reference in (MISSED, ABSENT):
        metric.reset()
        metric([one_hot(prediction, 3, dim=0)], [one_hot(reference, 3, dim=0)])
    assert metric.aggregate().item() == 1.0
