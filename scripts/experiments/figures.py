# SPDX-License-Identifier: Apache-2.0
"""Figures of the tables that experiments print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURED = re.compile(r"(.+) (s|ms|MiB|%)")
"""Columns that hold measurements: what was measured and its unit."""

LINES = ("-", "--", ":", "-.")


@contextmanager
def figure(path: Path, panels: int = 1, share_y: bool = False) -> Iterator[list[Axes]]:
    """Yield panels side by side; at the end they are written to a file, with a legend below panels that need one.

    Args:
        path: PNG, SVG or PDF file; its folder is created.
        panels: number of panels.
        share_y: whether the panels share the vertical axis.
    """
    from matplotlib.figure import Figure  # imported here, because it takes half a second

    drawn = Figure(figsize=(5.5 * panels, 4.6), layout="constrained")
    axes = np.atleast_1d(drawn.subplots(1, panels, sharey=share_y)).tolist()
    yield axes
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
        if len(each.get_legend_handles_labels()[1]) > 1:
            each.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)


def draw_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the measured columns of a table against the varied settings, with a panel for each unit.

    The columns before the first measured one are the varied settings. If the first of these holds numbers, it becomes
    the horizontal axis, and rows that differ in the others become separate lines; otherwise each row becomes a bar.

    Args:
        rows: rows with the same keys; keys of measured columns end with a unit, such as `step s`.
        path: see `figure`.

    Raises:
        UserError: if no column is measured.
    """
    measured = {key: match for key in rows[0] if (match := MEASURED.fullmatch(key))}
    if not measured:
        raise UserError("This table has no column that can be drawn: leave --figure out.")
    varied = list(rows[0])[: list(rows[0]).index(next(iter(measured)))]
    units = list(dict.fromkeys(match[2] for match in measured.values()))
    with figure(path, len(units)) as panels:
        for axes, unit in zip(panels, units, strict=True):
            names = {key: match[1] for key, match in measured.items() if match[2] == unit}
            title = f"{next(iter(names.values()))}, {unit}" if len(names) == 1 else unit
            if isinstance(rows[0][varied[0]], int | float):
                _lines(axes, rows, varied, names)
                axes.set(xlabel=varied[0], ylabel=title)
                axes.set_ylim(bottom=0)
                axes.set_xlim(left=0)
            else:
                _bars(axes, rows, varied, names)
                axes.set(xlabel=title)


def _lines(axes: Axes, rows: Sequence[Mapping[str, Any]], varied: Sequence[str], names: Mapping[str, str]) -> None:
    x, *others = varied
    series: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        series.setdefault(tuple(row[key] for key in others), []).append(row)
    for colour, (key, name) in enumerate(names.items()):
        for number, (values, group) in enumerate(series.items()):
            words = [f"{value} {other}" for other, value in zip(others, values, strict=True)]
            axes.plot(
                [row[x] for row in group], [row[key] for row in group], LINES[number % len(LINES)], marker="o",
                color=f"C{colour}", label=", ".join([name, *(words if len(series) > 1 else [])]),
            )  # fmt: skip


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], varied: Sequence[str], names: Mapping[str, str]) -> None:
    height, places = 0.8 / len(names), np.arange(len(rows))
    for number, (key, name) in enumerate(names.items()):
        axes.barh(places + (number - (len(names) - 1) / 2) * height, [row[key] for row in rows], height, label=name)
    axes.set_yticks(places, [", ".join(str(row[key]) for key in varied) for row in rows])
    axes.invert_yaxis()  # the first row on top
