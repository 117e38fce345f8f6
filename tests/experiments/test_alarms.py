# SPDX-License-Identifier: Apache-2.0
"""The changes of images are what their names say, and the table counts them."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.experiments.alarms import CHANGES, UNCHANGED, main
from scripts.files import csv_rows


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.arange(12 * 20 * 14, dtype=np.float32).reshape(12, 20, 14)
    classes = np.zeros(image.shape, np.uint8)
    classes[5:7, 4:8, 6:9] = 1
    return image, classes, np.diag([1.0, 1.5, 2.0, 1.0])


def test_every_change_leaves_its_input_and_changes_something(case) -> None:
    before = [part.copy() for part in case]
    for name, change in CHANGES.items():
        after = change(case)
        same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(before, case, strict=True)), name
        assert all(same) == (name == UNCHANGED), name
        assert after[0].shape == after[1].shape


def test_changes_by_hand(case) -> None:
    image, classes, affine = case
    assert CHANGES["inverted contrast"](case)[0][0, 0, 0] == image.max()
    assert CHANGES["gamma 2"](case)[0].mean() < image.mean() < CHANGES["gamma 0.5"](case)[0].mean()
    assert CHANGES["half a scan"](case)[0].shape == (12, 10, 14)
    assert CHANGES["second axis flipped in the header"](case)[2][1, 1] == -affine[1, 1]
    assert np.allclose(CHANGES["spacing times 2"](case)[2][:3, :3], 2 * affine[:3, :3])
    replaced, none, _ = CHANGES["structures replaced by noise"](case)
    assert none.sum() == 0 and (replaced != image)[classes == 1].all() and np.array_equal(replaced[0], image[0])


def test_the_table_of_the_demo(tiny_demo, train, tmp_path, capsys, monkeypatch) -> None:
    train(max_steps=1)
    words = ["--dataset", "demo", "--dataset_dir", str(tiny_demo), "--checkpoint", str(tmp_path / "models/model.pt")]
    words += ["--cases", "1", "--good_cases", "2", "--calibration_cases", "1", "--results", str(tmp_path / "a.csv")]
    monkeypatch.setattr("scripts.experiments.alarms.CHANGES", {n: CHANGES[n] for n in (UNCHANGED, "spacing times 2")})
    main(words)
    rows = csv_rows(tmp_path / "a.csv")
    assert [row["change"] for row in rows] == [UNCHANGED, UNCHANGED, "spacing times 2"]
    assert "Voxel size" in rows[2]["alarms"] and "Voxel size" not in rows[0]["alarms"]
    assert "| spacing times 2 | 1 | 1 |" in capsys.readouterr().out
