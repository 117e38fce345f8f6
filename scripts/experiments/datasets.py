# SPDX-License-Identifier: Apache-2.0
r"""Write variants of a dataset for experiments: other test cases, sparse, corrected and faulty labels.

    python -m scripts.experiments.datasets held-out FOLDER --first 60 --hold_out 20 --output dev.json
    python -m scripts.experiments.datasets sparse FOLDER --output SPARSE --cases 8 --slices 5
    python -m scripts.experiments.datasets corrected FOLDER --output CORRECTED --proposals PSEUDO_LABELS --cases 8
    python -m scripts.experiments.datasets faulty FOLDER --output FAULTY --fault shifted

`held-out` writes a datalist for tuning, to be passed to training and evaluation with `--datalist`: the first 60
training cases stay under `training`, the next 20 become `test`, and the test cases of the dataset are not used.

`sparse` writes a dataset whose labels are reduced to a few slices per case, as if the other slices had never been
drawn. The slices are evenly spaced from just below to just above the structures, as an annotator without a model would
choose them. Images, unlabelled cases and test cases are those of the original dataset.

`corrected` plays the annotator who corrects the slices that `pseudo-label --slices` proposed: in the least confident
cases, those slices get the dataset's own labels. Train with `--corrected_labels CORRECTED`.

`faulty` plays another program that segments the training cases with a known fault: it writes the dataset's own labels,
changed. Train with `--foreign_labels FAULTY`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.datalist import load_cases, read_datalist
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError
from scripts.experiments.measure import command_line
from scripts.files import csv_rows, write_text
from scripts.images.monai import label_dtype
from scripts.images.read import read_volume
from scripts.images.write import write_volume
from scripts.labelling.pseudo_labels import slice_axis


def held_out_datalist(dataset_dir: Path, datalist: str, first: int, hold_out: int) -> dict[str, list[dict[str, str]]]:
    """Make a datalist with absolute paths and the cases in their original order.

    Args:
        dataset_dir: folder of the datalist.
        datalist: name of the datalist file.
        first: number of training cases that stay.
        hold_out: number of training cases after them that become test cases; all must have labels.

    Raises:
        UserError: if the datalist has fewer than `first + hold_out` labelled cases.
    """
    cases = load_cases(DatasetSpec(dataset_dir.resolve(), datalist)).labelled
    if first < 1 or hold_out < 1 or first + hold_out > len(cases):
        raise UserError(
            f"first ({first}) and hold_out ({hold_out}) must be at least 1 and together at most {len(cases)}."
        )
    entries = [{"image": case["image"], "label": case["label"]} for case in cases]
    return {"training": entries[:first], "test": entries[first : first + hold_out]}


def spread_slices(label: np.ndarray, axis: int, number: int) -> list[int]:
    """Return `number` evenly spaced slices along `axis`, from the slice before the structures to the slice after them.

    Example:
        >>> spread_slices(np.pad(np.ones((1, 1, 9)), ((0, 0), (0, 0), (3, 8))), 2, 3)
        [2, 7, 12]
    """
    filled = np.flatnonzero((label != 0).any(axis=tuple(other for other in range(3) if other != axis)))
    first, last = (filled[0], filled[-1]) if len(filled) else (0, label.shape[axis] - 1)
    ends = max(0, first - 1), min(label.shape[axis] - 1, last + 1)
    return sorted({round(place) for place in np.linspace(*ends, number).tolist()})


def sparse_label(label: np.ndarray, axis: int, slices: Sequence[int], ignore_value: int) -> np.ndarray:
    """Set a label to `ignore_value` everywhere except in the given slices."""
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
        folder: folder of the dataset.
        datalist: its list of cases, relative to `folder` or absolute.
        output: output folder, created if needed.
        cases: number of training cases that keep some slices; the first ones are taken, and the others become
            unlabelled.
        number: number of slices per case.
        ignore_value: value of all other voxels.

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


def write_corrected_labels(
    folder: Path, datalist: str, proposals: Path, output: Path, cases: int, ignore_value: int
) -> list[str]:
    """Write the labels that an annotator makes of pseudo-labels of which only some slices are kept.

    Args:
        folder: folder of the dataset, whose datalist has the true labels of these cases.
        datalist: its list of cases.
        proposals: what `pseudo-label --slices` wrote: `confidence.csv` and the label files.
        output: folder of the corrected files, created if needed.
        cases: number of cases that are corrected, the least confident first.
        ignore_value: value of all voxels outside the proposed slices.

    Returns:
        The names of the files.

    Raises:
        UserError: if the datalist has no label of such a case.
    """
    labels = {case["case"]: case["label"] for case in load_cases(DatasetSpec(folder, datalist)).labelled}
    names = []
    for row in csv_rows(proposals / "confidence.csv")[:cases]:
        if row["case"] not in labels:
            raise UserError(f"{datalist} has no label of {row['case']}, which is needed to correct it.")
        header, (proposal,) = read_volume(proposals / row["label"])
        _, (truth,) = read_volume(labels[row["case"]])
        label = np.rint(np.where(proposal == ignore_value, ignore_value, truth)).astype(np.int64)
        write_volume(output / row["label"], label.astype(label_dtype(np.unique(label).tolist())), header.affine)
        names.append(row["label"])
    return names


def shifted(label: np.ndarray, _index: int) -> np.ndarray:
    """Shift every structure by one voxel along each axis; the first planes become background."""
    result = np.zeros_like(label)
    result[1:, 1:, 1:] = label[:-1, :-1, :-1]
    return result


def missing(label: np.ndarray, index: int) -> np.ndarray:
    """Remove the structure with the highest value from every second case."""
    return np.where(label == label.max(), 0, label) if index % 2 else label


def swapped(label: np.ndarray, index: int) -> np.ndarray:
    """Exchange the two structures with the lowest values in every second case."""
    first, second = np.unique(label[label > 0])[:2]
    return np.select([label == first, label == second], [second, first], label) if index % 2 else label


FAULTS = {fault.__name__: fault for fault in (shifted, missing, swapped)}


def write_faulty_labels(folder: Path, datalist: str, output: Path, fault: str) -> list[str]:
    """Write the labels of all training cases with a fault.

    Args:
        folder: folder of the dataset; all its training cases must have labels.
        datalist: its list of cases.
        output: output folder, created if needed.
        fault: a key of `FAULTS`.

    Returns:
        The names of the cases.
    """
    names = []
    for index, case in enumerate(load_cases(DatasetSpec(folder, datalist)).labelled):
        header, (voxels,) = read_volume(case["label"])
        label = FAULTS[fault](np.rint(voxels).astype(np.int64), index)
        write_volume(
            output / f"{case['case']}.nii.gz", label.astype(label_dtype(np.unique(label).tolist())), header.affine
        )
        names.append(case["case"])
    return names


def held_out(options: argparse.Namespace) -> None:
    """Write a datalist in which some training cases serve as test cases."""
    content = held_out_datalist(options.folder, options.datalist, options.first, options.hold_out)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def sparse(options: argparse.Namespace) -> None:
    """Write a dataset whose labels are reduced to a few slices per case."""
    folder, output = options.folder.absolute(), options.output
    for name, slices in write_sparse_dataset(
        folder, options.datalist, output, options.cases, options.slices, options.ignore_value
    ):
        print(f"{name}: slices {', '.join(map(str, slices))}")


def corrected(options: argparse.Namespace) -> None:
    """Correct proposed slices by the dataset's own labels."""
    print(
        *write_corrected_labels(
            options.folder, options.datalist, options.proposals, options.output, options.cases, options.ignore_value
        )
    )


def faulty(options: argparse.Namespace) -> None:
    """Write the dataset's labels with a known fault."""
    names = write_faulty_labels(options.folder, options.datalist, options.output, options.fault)
    print(f"{len(names)} labels in {options.output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser, options = command_line(__doc__, (held_out, sparse, corrected, faulty))
    for option in options.values():
        option("folder", type=Path, metavar="FOLDER", help="folder of the dataset")
        option("--datalist", default="dataset.json", metavar="FILE")
        option("--output", type=Path, required=True, help="what is written, a file or a folder")
    option = options["held-out"]
    option("--first", type=int, required=True, help="number of training cases that stay")
    option("--hold_out", type=int, required=True, help="number of training cases that become test cases")
    option = options["sparse"]
    option("--cases", type=int, default=8, help="number of training cases with labels")
    option("--slices", type=int, default=5, help="slices per case")
    option("--ignore_value", type=int, default=255)
    option = options["corrected"]
    option("--proposals", type=Path, required=True, metavar="FOLDER", help="what pseudo-label --slices wrote")
    option("--cases", type=int, default=8, help="number of cases that are corrected, the least confident first")
    option("--ignore_value", type=int, default=255)
    options["faulty"]("--fault", choices=list(FAULTS), required=True)
    given = parser.parse_args(argv)
    given.function(given)


if __name__ == "__main__":
    main()
