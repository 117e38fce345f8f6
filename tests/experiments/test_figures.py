# SPDX-License-Identifier: Apache-2.0
"""Figures show the measured columns of a table."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.errors import UserError
from scripts.experiments import figures


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list:
    """The panels of what is drawn."""
    kept: list = []
    real = figures.figure

    @contextmanager
    def keep(*words):
        with real(*words) as axes:
            yield axes
        kept.extend(axes)

    monkeypatch.setattr(figures, "figure", keep)
    return kept


def test_numbers_are_drawn_as_lines_with_a_panel_for_each_unit(panels, tmp_path: Path) -> None:
    rows = [
        {"classes": n, "stored": k, "update ms": n * k, "loss ms": n, "peak MiB": k, "ratio": 0.0}
        for k in (1, 10)
        for n in (2, 4)
    ]
    file = tmp_path / "new folder/growth.png"
    figures.draw_table(rows, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    milliseconds, mebibytes = panels
    assert {line.get_label(): list(line.get_ydata()) for line in milliseconds.lines} == {
        "update, 1 stored": [2, 4],
        "update, 10 stored": [20, 40],
        "loss, 1 stored": [2, 4],
        "loss, 10 stored": [2, 4],
    }
    assert all(list(line.get_xdata()) == [2, 4] for axes in panels for line in axes.lines)
    assert (milliseconds.get_xlabel(), milliseconds.get_ylabel()) == ("classes", "ms")
    assert mebibytes.get_ylabel() == "peak, MiB" and len(mebibytes.lines) == 2
    assert all(axes.get_ylim()[0] == 0 for axes in panels)


def test_words_are_drawn_as_bars(panels, tmp_path: Path) -> None:
    rows = [{"settings": "a=1", "step s": 2.0, "relative": 1.0}, {"settings": "b=2", "step s": 3.0, "relative": 1.5}]
    figures.draw_table(rows, tmp_path / "bars.svg")
    (axes,) = panels
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a=1", "b=2"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0] and axes.get_xlabel() == "step, s"


def test_a_table_without_a_measured_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--figure"):
        figures.draw_table([{"a": 1, "ratio": 2.0}], tmp_path / "nothing.png")
    assert not list(tmp_path.iterdir())
