# SPDX-License-Identifier: Apache-2.0
r"""Write a dataset whose labels are reduced to a few slices per case, as if the others had never been drawn.

    python -m scripts.experiments.sparse_labels FOLDER --output SPARSE --cases 8 --slices 5
    python -m scripts.experiments.accuracy run --dataset left_atrium --dataset_dir SPARSE --labelled 8 --seeds 0 \
        --results sparse.csv -- --ignore_value 255

The slices are evenly spaced from just below to just above the structures, as an annotator without a model would choose
them. Images, unlabelled and test cases are those of the dataset.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.datalist import read_datalist
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.monai import label_dtype
from scripts.images.read import read_volume
from scripts.images.write import write_volume
from scripts.labelling.pseudo_labels import slice_axis


def spread_slices(label: np.ndarray, axis: int, number: int) -> list[int]:
    """Indices of `number` slices across `axis`, evenly spaced, from the slice before the structures to that after them.

    Example:
        >>> spread_slices(np.pad(np.ones((1, 1, 9)), ((0, 0), (0, 0), (3, 8))), 2, 3)
        [2, 7, 12]
    """
    filled = np.flatnonzero((label != 0).any(axis=tuple(other for other in range(3) if other != axis)))
    first, last = (filled[0], filled[-1]) if len(filled) else (0, label.shape[axis] - 1)
    ends = max(0, first - 1), min(label.shape[axis] - 1, last + 1)
    return sorted({round(place) for place in np.linspace(*ends, number).tolist()})


def sparse_label(label: np.ndarray, axis: int, slices: Sequence[int], ignore_value: int) -> np.ndarray:
    """The label with `ignore_value` everywhere but in some slices."""
    result = np.full(label.shape, ignore_value, label_dtype([*np.unique(label).tolist(), ignore_value]))
    place: list[Any] = [slice(None)] * 3
    place[axis] = list(slices)
    result[tuple(place)] = label[tuple(place)]
    return result


def write_sparse_dataset(
    folder: Path, datalist: str, output: Path, cases: int, number: int, ignore_value: int
) -> list[tuple[str, list[int]]]:
    """Write the labels and `dataset.json` into `output`.

    Args:
        folder: of the dataset.
        datalist: its list of cases, relative to `folder` or absolute.
        output: folder, created if needed.
        cases: number of training cases, the first ones, that keep some slices; the others become unlabelled.
        number: of slices per case.
        ignore_value: of all other voxels.

    Returns:
        The names of the label files, and their slices.

    Raises:
        UserError: if a label holds `ignore_value`, or there are fewer training cases.
    """
    content = read_datalist(folder, datalist)
    if len(content["training"]) < cases:
        raise UserError(f"{datalist} lists {len(content['training'])} training cases: give --cases accordingly.")

    def absolute(entry: dict[str, Any]) -> dict[str, Any]:
        result = dict(entry)
        for key in ("image", "label"):
            if isinstance(result.get(key), list):
                result[key] = [str(folder / file) for file in result[key]]
            elif key in result:
                result[key] = str(folder / result[key])
        return result

    chosen, training = [], []
    for entry in map(absolute, content["training"][:cases]):
        header, voxels = read_volume(entry["label"])
        label = np.rint(voxels[0]).astype(np.int64)
        if (label == ignore_value).any():
            raise UserError(f"{entry['label']} holds {ignore_value}: give another --ignore_value.")
        axis = slice_axis(header.affine)
        slices = spread_slices(label, axis, number)
        path = output.absolute() / "labels" / Path(entry["label"]).name
        write_volume(path, sparse_label(label, axis, slices, ignore_value), header.affine)
        training.append({**entry, "label": str(path)})
        chosen.append((path.name, slices))
    others = [{"image": absolute(entry)["image"]} for entry in content["training"][cases:] + content["unlabeled"]]
    lists = {"training": training, "unlabeled": others, "test": list(map(absolute, content["test"]))}
    write_text(output / "dataset.json", json.dumps(lists, indent=1) + "\n")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the dataset")
    parser.add_argument("--datalist", default="dataset.json", metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--cases", type=int, default=8, help="number of training cases with labels")
    parser.add_argument("--slices", type=int, default=5, help="slices per case")
    parser.add_argument("--ignore_value", type=int, default=255)
    options = parser.parse_args(argv)
    chosen = write_sparse_dataset(
        options.folder.absolute(), options.datalist, options.output, options.cases, options.slices, options.ignore_value
    )
    for name, slices in chosen:
        print(f"{name}: slices {', '.join(map(str, slices))}")


if __name__ == "__main__":
    main()
