# SPDX-License-Identifier: Apache-2.0
"""Draw one slice of an image beside its reference, the prediction of the labels alone, and that with unlabelled scans.

    python -m scripts predict IMAGE --dataset demo --checkpoint model.pt --output_dir with
    python -m scripts predict IMAGE --dataset demo --checkpoint model_labels_only.pt --output_dir alone
    python docs/examples/before_and_after.py IMAGE REFERENCE alone/NAME_seg.nii.gz with/NAME_seg.nii.gz picture.png

The slice is the axial one in which the two predictions differ most. Needs matplotlib (requirements-dev.txt).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import nibabel as nib
import numpy as np
from matplotlib import pyplot
from matplotlib.colors import ListedColormap

TITLES = ("image", "reference", "labelled scans alone", "with unlabelled scans")
COLOURS = ListedColormap(["#3987e5", "#199e70", "#e66767", "#c98500"])


def axial(path: str) -> tuple[np.ndarray, float]:
    """A volume with axes left to right, back to front and down to up, and height by width of a pixel."""
    image = nib.as_closest_canonical(nib.load(path))
    width, height = image.header.get_zooms()[:2]
    return np.asarray(image.dataobj), float(height / width)


def draw(image: str, labels: list[str], picture: str) -> None:
    """Write the picture."""
    grey, aspect = axial(image)
    volumes = [axial(path)[0].astype(int) for path in labels]
    _, alone, both = volumes
    z = int((alone != both).sum(axis=(0, 1)).argmax())
    figure, panels = pyplot.subplots(1, 4, figsize=(10, 10 / 4 * aspect * grey.shape[1] / grey.shape[0] + 0.3))
    for panel, title, volume in zip(panels, TITLES, [None, *volumes], strict=True):
        panel.imshow(grey[:, :, z].T, cmap="gray", origin="lower", aspect=aspect)
        if volume is not None:
            shown = np.ma.masked_equal(volume[:, :, z].T, 0)
            limits = {"vmin": 1, "vmax": COLOURS.N}
            panel.imshow(shown, COLOURS, origin="lower", aspect=aspect, alpha=0.75, interpolation="nearest", **limits)
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.9, wspace=0.02)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    draw(sys.argv[1], sys.argv[2:5], sys.argv[5])
    print(f"Wrote {Path(sys.argv[5])}")
