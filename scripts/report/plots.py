# SPDX-License-Identifier: Apache-2.0
"""Plots of the report as SVG, which adapt to the light or dark colours of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#e5484d", "#2f8ee0", "#2ea55c", "#e08a1e", "#9461d6", "#b5a51b", "#d6569b", "#1aa39a", "#7f9a2a", "#8a8f98")
"""Colours of structures 1 to 10; legible on light and dark pages and over images."""

SHADES = (("#ffffff", 0.45), ("#000000", 0.4))
"""Structures 11 to 20 and 21 to 30 have the same colours, mixed with this fraction of white and black."""

INK = "#123456"
"""Placeholder that is replaced by the colour of the page's text."""

TOTAL = "total, weighted"
"""Name of the curve of the loss itself, among those of its terms."""


def colour(index: int) -> str:
    """Return the colour of a structure, numbered from 0. The first 30 structures have different colours."""
    turn, place = divmod(index, len(COLOURS))
    if turn % 3 == 0:
        return COLOURS[place]
    other, fraction = SHADES[turn % 3 - 1]
    mixed = zip(bytes.fromhex(COLOURS[place][1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + "".join(f"{round((1 - fraction) * own + fraction * added):02x}" for own, added in mixed)


def draw(size: tuple[float, float], plot: Callable[[Sequence[Axes]], None], panels: tuple[int, int] = (1, 1)) -> str:
    """Return an SVG element with the drawing of a function.

    Args:
        size: width and height in inches; the page scales it.
        plot: function that draws into the axes of the panels, which are given row by row.
        panels: numbers of rows and columns.
    """
    import matplotlib  # imported here, because it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
        "axes.grid": True, "grid.alpha": 0.18, "grid.linewidth": 0.8, "axes.axisbelow": True, "svg.hashsalt": "report",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        **dict.fromkeys(("grid.color", "axes.titlecolor", "legend.labelcolor"), INK),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(*panels)).ravel().tolist()
        plot(axes)
        stream = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has more fonts
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Remove styles: a style inside an SVG element would apply to the whole page, and the page already has this one.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    # Text has the same size in all plots, and plots shrink on narrow pages. The text of the page describes each plot.
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} aria-hidden="true" focusable="false" style="--width: {6.4 * size[0]:.1f}rem">{rest}'


def dice_plot(dice: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Sequence[float] | None]) -> str:
    """Plot a point per case for each structure, with the mean and its interval.

    Args:
        dice: Dice by structure and case, as returned by `scripts.evaluation.comparison.read_dice`.
        intervals: 95 % interval of each structure's mean, or `None`.
    """

    def plot(axes: Sequence[Axes]) -> None:
        (axis,) = axes
        for index, (name, values) in enumerate(dice.items()):
            ordered = np.sort(list(values.values()))
            spread = (np.arange(len(ordered)) * 0.618034) % 1 - 0.5  # evenly spread and reproducible
            axis.scatter(ordered, index + 0.5 * spread, s=16, alpha=0.55, color=colour(index), linewidths=0)
            if len(ordered):
                axis.plot([ordered.mean()] * 2, [index - 0.36, index + 0.36], color=INK, linewidth=1.6)
            interval = intervals.get(name)
            if interval is not None:
                axis.plot(interval, [index, index], color=INK, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axis.set_yticks(range(len(dice)), [_plain(name) for name in dice])
        axis.set_ylim(len(dice) - 0.4, -0.6)
        if len({value for values in dice.values() for value in values.values()}) == 1:
            axis.set_xlim(0, 1)
        axis.set_xlabel("Dice")
        axis.grid(axis="y", visible=False)

    return draw((7.0, 0.9 + 0.55 * max(1, len(dice))), plot)


def agreement_plot(structures: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> str:
    """Plot the difference of predicted and reference volume against their mean, with a panel per structure.

    Args:
        structures: entries of `scripts.report.cases.agreement`.
        numbers: number of each structure, counted from 1, which selects its colour.
    """
    columns = min(3, len(structures))
    rows = -(-len(structures) // columns)

    def plot(axes: Sequence[Axes]) -> None:
        for axis in axes[len(structures) :]:
            axis.set_visible(False)
        for axis, each in zip(axes, structures, strict=False):
            pairs = np.array(each["pairs"])
            axis.scatter(
                pairs.mean(axis=1), pairs[:, 0] - pairs[:, 1], s=16, alpha=0.6, linewidths=0,
                color=colour(numbers[each["name"]] - 1),
            )  # fmt: skip
            axis.axhline(0, color=INK, linewidth=0.8, alpha=0.4)
            axis.axhline(each["bias"], color=INK, linewidth=1.4)
            for limit in each["limits"] or ():
                axis.axhline(limit, color=INK, linewidth=1, linestyle="--")
            axis.set_title(_plain(each["name"]))
            axis.set_xlabel("mean of both (ml)")
        axes[0].set_ylabel("prediction - reference (ml)")

    return draw((2.6 * columns + 0.6, 2.5 * rows), plot, (rows, columns))


def difference_plot(differences: Mapping[str, float], unit: str) -> str:
    """Plot the differences of the same cases in two runs, from the largest loss to the largest gain.

    Args:
        differences: this run minus the other run, by case.
        unit: label of the vertical axis.
    """
    values = np.sort(list(differences.values()))

    def plot(axes: Sequence[Axes]) -> None:
        (axis,) = axes
        place = np.arange(1, len(values) + 1)
        better = values > 0
        for chosen, tint in ((better, COLOURS[2]), (~better, COLOURS[0])):
            axis.vlines(place[chosen], 0, values[chosen], color=tint, linewidth=2)
            axis.scatter(place[chosen], values[chosen], s=20, color=tint, linewidths=0)
        axis.axhline(0, color=INK, linewidth=0.9)
        axis.axhline(values.mean(), color=INK, linewidth=1, linestyle="--")
        axis.set_xlabel("cases, from the largest loss to the largest gain")
        axis.set_ylabel(unit)
        axis.set_xticks([])
        axis.grid(axis="x", visible=False)

    return draw((7.0, 2.4), plot)


def curves_plot(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    label_names: Sequence[str] = (),
    limits: Mapping[str, tuple[float, float]] | None = None,
    logarithmic: Sequence[str] = (),
) -> str:
    """Plot curves over training steps, with a panel for each group. Curves with one name have one colour.

    Args:
        panels: steps and values of each curve, by title of the panel and name of the curve.
        label_names: names of the classes, background first; their curves have the colours of the structures.
        limits: limits of the vertical axis, by title.
        logarithmic: titles of the panels with a logarithmic vertical axis.
    """
    tints = {name: INK if c == 0 else colour(c - 1) for c, name in enumerate(label_names)}
    others = dict.fromkeys(name for curves in panels.values() for name in curves if name not in tints)
    tints |= {name: INK if name == TOTAL else colour(index + 1) for index, name in enumerate(others)}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def plot(axes: Sequence[Axes]) -> None:
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, curves) in zip(axes, panels.items(), strict=False):
            for name, (steps, values) in curves.items():
                marker = "o" if len(steps) < 15 else ""
                axis.plot(
                    steps,
                    values,
                    color=tints[name],
                    linewidth=1.3,
                    label=_plain(name),
                    marker=marker,
                    markersize=3,
                )
            axis.set_title(_plain(title, 40))
            axis.set_xlabel("step")
            if title in (limits or {}):
                axis.set_ylim((limits or {})[title])
            if title in logarithmic:
                axis.set_yscale("log")
            if len(curves) > 1:
                axis.legend(fontsize=7, loc="best")

    return draw((4.4 * columns, 2.5 * rows), plot, (rows, columns))


MARKERS = {"labelled voxel": "o", "unlabelled voxel": "+", "prototype": "D"}
"""Markers for the kinds of embeddings; prototypes are drawn last, on top of the others."""


def embeddings_plot(groups: Mapping[tuple[str, int], np.ndarray], label_names: Sequence[str]) -> str:
    """Plot prototypes and voxels in two dimensions, coloured by class.

    Args:
        groups: points `(N, 2)` by kind (a key of `MARKERS`) and class.
        label_names: names of the classes, background first.
    """
    names = dict(enumerate(label_names))

    def plot(axes: Sequence[Axes]) -> None:
        (axis,) = axes
        for kind, marker in MARKERS.items():
            is_prototype = kind == "prototype"
            for c in sorted(c for found, c in groups if found == kind):
                x, y = groups[kind, c].T
                tint = INK if c == 0 else colour(c - 1)
                axis.scatter(
                    x, y, s=44 if is_prototype else 14, alpha=0.95 if is_prototype else 0.4, color=tint, marker=marker,
                    linewidths=0.9, edgecolors=INK if is_prototype else None,
                )  # fmt: skip
        for kind, marker in MARKERS.items():
            axis.scatter([], [], color=INK, marker=marker, label=kind)
        for c in sorted({c for _, c in groups}):
            axis.scatter([], [], color=INK if c == 0 else colour(c - 1), marker="s", label=_plain(names.get(c, c)))
        axis.set_xlabel("first principal component")
        axis.set_ylabel("second principal component")
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw((6.4, 3.4), plot)


def _plain(text: Any, longest: int = 28) -> str:
    """Escape and shorten text for matplotlib, which would read a dollar sign as the start of a formula."""
    text = str(text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")
