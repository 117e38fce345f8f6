# SPDX-License-Identifier: Apache-2.0
r"""Measure how often inference raises an alarm on images that are wrong in a known way, and on good images.

    python -m scripts.experiments.alarms --dataset hippocampus --dataset_dir FOLDER --results alarms.csv

Test cases are segmented unchanged, and the first of them also with each of `CHANGES`. The measurements of the training
cases are taken from the weights if these record them; otherwise the training cases of the datalist are measured. The
predicted Dice is calibrated on training cases whose labels the model has not seen, instead of the held-out cases of a
cross-validation. The table shows the number of cases with an alarm, the mean predicted Dice and the mean true Dice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from scipy import ndimage

from scripts.crossval.estimate import calibrate
from scripts.data.datalist import load_test_cases, read_datalist
from scripts.data.spec import images_of
from scripts.data.training_cases import TrainingCases
from scripts.data.weights import CASES, read_weights, record_of
from scripts.evaluation.metrics import overlap_metrics
from scripts.files import csv_text, write_text
from scripts.images.read import read_volume
from scripts.inference.alarms import Alarms
from scripts.inference.segmenter import Segmentation, Segmenter

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("change", "case", "confidence", "predicted_dice", "true_dice", "alarms")

Case = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image `(X, Y, Z)`, classes `(X, Y, Z)` and affine."""


def gamma(exponent: float) -> Callable[[Case], Case]:
    """Change the contrast to `x ** exponent`, for intensities in [0, 1]."""

    def change(case: Case) -> Case:
        image, classes, affine = case
        low, high = float(image.min()), float(image.max())
        return low + (high - low) * ((image - low) / (high - low)) ** exponent, classes, affine

    return change


def inverted(case: Case) -> Case:
    """Invert intensities, as in another modality."""
    return case[0].max() + case[0].min() - case[0], case[1], case[2]


def half(case: Case) -> Case:
    """Keep the lower half of the longest axis."""
    axis = int(np.argmax(case[0].shape))
    part = [slice(None)] * 3
    part[axis] = slice(0, case[0].shape[axis] // 2)
    return case[0][tuple(part)], case[1][tuple(part)], case[2]


def flipped(axis: int) -> Callable[[Case], Case]:
    """Give a wrong direction for one axis in the header."""

    def change(case: Case) -> Case:
        affine = case[2].copy()
        affine[:3, axis] *= -1
        return case[0], case[1], affine

    return change


def without_structures(case: Case) -> Case:
    """Replace the structures by noise with the mean and standard deviation of their surroundings."""
    image, classes, affine = case
    inside = ndimage.binary_dilation(classes > 0, iterations=2)
    around = image[ndimage.binary_dilation(inside, iterations=3) & ~inside]
    noise = np.random.default_rng(0).normal(around.mean(), around.std(), image.shape)
    return np.where(inside, ndimage.gaussian_filter(noise, 0.5), image), np.zeros_like(classes), affine


def wrong_spacing(factor: float) -> Callable[[Case], Case]:
    """Give a wrong voxel size in the header."""
    return lambda case: (case[0], case[1], case[2] @ np.diag([factor, factor, factor, 1.0]))


UNCHANGED = "none"
CHANGES: dict[str, Callable[[Case], Case]] = {
    UNCHANGED: lambda case: case,
    "inverted contrast": inverted,
    "gamma 0.5": gamma(0.5),
    "gamma 2": gamma(2.0),
    "half a scan": half,
    "first axis flipped in the header": flipped(0),
    "second axis flipped in the header": flipped(1),
    "third axis flipped in the header": flipped(2),
    "structures replaced by noise": without_structures,
    "spacing times 2": wrong_spacing(2.0),
    "spacing divided by 2": wrong_spacing(0.5),
}


def read_case(entry: dict[str, Any], parser: ConfigParser) -> Case:
    """Read the image and the classes of a case, which must be on the same grid; only the first channel is used."""
    header, image = read_volume(images_of(entry)[0])
    _, labels = read_volume(entry["label"])
    classes = np.zeros(labels.shape[1:], np.uint8)
    for index, values in enumerate(parser.get_parsed_content("dataset_spec").all_values):
        classes[np.isin(labels[0], values)] = index
    return image[0].astype(np.float32), classes, header.affine


def true_dice(result: Segmentation, classes: np.ndarray) -> float:
    """Mean Dice over the structures that are in the prediction or in the reference; 1 if none is in either."""
    pairs = [(result.classes == c, classes == c) for c in range(1, len(result.label_names))]
    found = [overlap_metrics(p, t)[0] for p, t in pairs if p.any() or t.any()]
    return fmean(found) if found else 1.0


def measure(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return rows of `COLUMNS` for each change and case."""
    parser = ConfigParser()
    files = ["train.yaml", f"datasets/{options.dataset}.yaml", "labelling.yaml"]
    parser.read_config([str(ROOT / "configs" / file) for file in files])
    parser["bundle_root"], parser["ckpt_dir"] = str(ROOT), str(options.checkpoint.absolute().parent)
    parser["checkpoint"] = options.checkpoint.name
    parser["output_dir"] = str(options.results.absolute().parent)
    if options.dataset_dir is not None:
        parser["dataset_dir"] = str(options.dataset_dir)
    segmenter = parser.get_parsed_content("labelling::segmenter")
    assert isinstance(segmenter, Segmenter)
    dataset = parser.get_parsed_content("dataset_spec")
    training = record_of(read_weights(options.checkpoint, "train first"), CASES)
    if training is None:
        sets = [parser.get_parsed_content(key) for key in ("train::dataset", "train::unlabelled_dataset")]
        training = TrainingCases(sets[0], sets[1], dataset).content
    assert training is not None  # the datasets of the configuration have a cache
    # Labelled cases come first in the datalist.
    first = dataset.labelled_cases or 0
    listed = read_datalist(Path(dataset.directory), dataset.datalist)["training"]
    pairs: dict[str, tuple[float, float]] = {}
    for number, entry in enumerate(listed[first : first + options.calibration_cases]):
        entry = {key: str(Path(dataset.directory) / entry[key]) for key in ("image", "label")}
        image, classes, affine = read_case(entry, parser)
        result = segmenter.segment(image, affine)
        pairs[str(number)] = result.sums.confidence(), true_dice(result, classes)
    segmenter.alarms = Alarms({**training, "calibration": calibrate(pairs)}, dataset.label_names)
    print(f"calibration: {segmenter.alarms.training['calibration']}", flush=True)
    rows: list[tuple[Any, ...]] = []
    cases = load_test_cases(dataset)
    for name, change in CHANGES.items():
        for case in cases[: options.cases if name != UNCHANGED else options.good_cases]:
            image, classes, affine = change(read_case(case, parser))
            result = segmenter.segment(image, affine)
            numbers = (result.sums.confidence(), result.predicted_dice(), true_dice(result, classes))
            rows.append((name, case["case"], *(f"{n:.4f}" for n in numbers), " ".join(result.alarms or [])))
        print(table(rows).splitlines()[-1], flush=True)
    return rows


def table(rows: Sequence[tuple[Any, ...]]) -> str:
    """Format a Markdown table with one line for each change."""
    lines = ["| change | cases | with an alarm | predicted Dice | true Dice |", f"|{'---|' * 5}"]
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        predicted, true = (fmean(float(row[column]) for row in own) for column in (3, 4))
        lines.append(f"| {name} | {len(own)} | {sum(bool(row[5]) for row in own)} | {predicted:.3f} | {true:.3f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="hippocampus", help="name of a file in configs/datasets")
    parser.add_argument("--dataset_dir", type=Path, metavar="FOLDER")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/model.pt", metavar="FILE")
    parser.add_argument("--cases", type=int, default=12, help="number of test cases for each change")
    parser.add_argument("--good_cases", type=int, default=40, help="number of test cases without a change")
    parser.add_argument("--calibration_cases", type=int, default=8, help="number of training cases without labels")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    rows = measure(options)
    write_text(options.results, csv_text(COLUMNS, rows))
    print(table(rows))


if __name__ == "__main__":
    main()
