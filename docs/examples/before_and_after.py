# SPDX-License-Identifier: Apache-2.0
"""Draw one slice of an image beside its reference, the prediction of the labels alone, and that with unlabelled scans.

    python -m scripts predict IMAGE --dataset demo --checkpoint model.pt --output_dir with
    python -m scripts predict IMAGE --dataset demo --checkpoint model_labels_only.pt --output_dir alone
    python docs/examples/before_and_after.py picture.png IMAGE REFERENCE alone/NAME_seg.nii.gz with/NAME_seg.nii.gz \
        --rows rows.csv

The slice is the axial one in which the two predictions differ most. With `--rows`, the results of
`scripts.experiments.accuracy`, Dice against the number of labelled cases is drawn beside it. Needs matplotlib
(requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import nibabel as nib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

TITLES = ("image", "reference", "labelled scans alone", "with unlabelled scans")
COLOURS = ListedColormap(["#3987e5", "#199e70", "#e66767", "#c98500"])
METHODS = {"default": "with unlabelled scans", "supervised": "labelled scans alone"}


def axial(path: str) -> tuple[np.ndarray, float]:
    """A volume with axes left to right, back to front and down to up, and height by width of a pixel."""
    image = nib.as_closest_canonical(nib.load(path))
    width, height = image.header.get_zooms()[:2]
    return np.asarray(image.dataobj), float(height / width)


def draw_slices(panels: list[Axes], image: str, labels: list[str]) -> None:
    """Draw the image, and the label volumes over it."""
    grey, aspect = axial(image)
    volumes = [axial(path)[0].astype(int) for path in labels]
    _, alone, both = volumes
    z = int((alone != both).sum(axis=(0, 1)).argmax())
    for panel, title, volume in zip(panels, TITLES, [None, *volumes], strict=True):
        panel.imshow(grey[:, :, z].T, cmap="gray", origin="lower", aspect=aspect)
        if volume is not None:
            shown = np.ma.masked_equal(volume[:, :, z].T, 0)
            limits = {"vmin": 1, "vmax": COLOURS.N}
            panel.imshow(shown, COLOURS, origin="lower", aspect=aspect, alpha=0.75, interpolation="nearest", **limits)
        panel.set_title(title, fontsize=10)
        panel.axis("off")


def draw_dice(panel: Axes, rows: Path) -> None:
    """Draw the mean Dice over the seeds against the number of labelled cases; bars span the seeds."""
    dice: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in csv.DictReader(rows.open(encoding="utf-8")):
        if row["method"] in METHODS and row["labelled"].isdigit() and not (row["overrides"] or row["datalist"]):
            dice[row["method"], int(row["labelled"])] += [float(row["mean_dice"])] if row["choice"] in ("", "0") else []
    numbers = sorted({number for _, number in dice})
    for index, (method, label) in enumerate(METHODS.items()):
        own = {number: dice[method, number] for number in numbers if dice.get((method, number))}
        means = [fmean(values) for values in own.values()]
        spread = [[m - min(v), max(v) - m] for m, v in zip(means, own.values(), strict=True)]
        places = [numbers.index(number) + 0.06 * (2 * index - 1) for number in own]
        panel.errorbar(places, means, np.transpose(spread), capsize=2, marker="o", markersize=4, label=label)
    panel.set_xticks(range(len(numbers)), map(str, numbers))
    panel.set_title("mean Dice by number of labelled scans", fontsize=10)
    panel.tick_params(labelsize=9)
    panel.grid(axis="y", alpha=0.3)
    panel.legend(fontsize=9, frameon=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("image")
    parser.add_argument("labels", nargs=3, metavar="LABEL")
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    widths = [1, 1, 1, 1, *([1.7] if options.rows else [])]
    figure, panels = pyplot.subplots(
        1, len(widths), figsize=(2.5 * sum(widths), 2.5), width_ratios=widths, layout="constrained"
    )
    draw_slices(list(panels[:4]), options.image, options.labels)
    if options.rows:
        draw_dice(panels[4], options.rows)
    figure.savefig(options.picture, dpi=100)
    print(f"Wrote {options.picture}")
