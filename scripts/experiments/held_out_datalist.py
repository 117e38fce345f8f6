# SPDX-License-Identifier: Apache-2.0
"""Write a datalist for tuning, in which some training cases serve as test cases.

    python -m scripts.experiments.held_out_datalist --dataset_dir FOLDER --first 60 --hold_out 20 --output dev.json

The first 60 training cases stay under `training`, the next 20 become `test`, and the test cases of the dataset are
not used. Pass the file to training and evaluation with `--datalist`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError


def held_out(dataset_dir: Path, datalist: str, first: int, hold_out: int) -> dict[str, list[dict[str, str]]]:
    """A datalist with absolute paths and the cases in their original order.

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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--first", type=int, required=True, help="number of training cases that stay")
    parser.add_argument("--hold_out", type=int, required=True, help="number of training cases that become test cases")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    content = held_out(options.dataset_dir, options.datalist, options.first, options.hold_out)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
