# SPDX-License-Identifier: Apache-2.0
"""Make a folder of images and labels ready to train: find what belongs together, measure it, choose settings.

    python -m scripts.cli.new_dataset FOLDER --name mine

FOLDER may hold images and labels side by side (`a.nii.gz`, `a_seg.nii.gz`), in subfolders (`images`, `labels`), in a
folder for each case (`a/imaging.nii.gz`, `a/segmentation.nii.gz`), in the Decathlon's form (`imagesTr`, `labelsTr`,
`imagesTs`), in nnU-Net's (`imagesTr/a_0000.nii.gz`), or be listed in a `dataset.json`. Files ending in .nii, .nii.gz,
.nrrd, .nhdr, .mha, .mhd and folders of DICOM files count. Cases without a label are used as images only.

It writes FOLDER/dataset.json and configs/datasets/mine.yaml, copies nothing unless asked, and overwrites neither file
once a person has edited it. Test cases: those below `imagesTs` or `test` that have a label, else a fifth of the
labelled cases (rounded down), the ones whose names have the lowest SHA-256 hash. docs/data.md says how settings are
chosen.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import UserError


def make_parser() -> argparse.ArgumentParser:
    """Options of the command, by the names of `Request`'s fields."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cli.new_dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--name", required=True, help="of the dataset and its YAML")
    files = parser.add_argument_group("what the files are").add_argument
    files("--labels", type=Path, metavar="FOLDER", help="folder of labels, if its name does not say so")
    files("--unlabelled", type=Path, metavar="FOLDER", help="further images without labels, in a folder of their own")
    files(
        "--channels", nargs="+", metavar="ENDING", help="endings of image names that are channels: t1 for a_t1.nii.gz"
    )
    files(
        "--label_names", nargs="+", metavar="NAME", help="of the classes in the order of their values, background first"
    )
    files("--ignore_value", type=int, metavar="VALUE", help="label value of voxels that count for nothing")
    testing = parser.add_argument_group("which cases test")
    split, number = testing.add_argument, testing.add_mutually_exclusive_group().add_argument
    number("--test_fraction", type=float, metavar="F", help="of the labelled cases, rounded down; default 0.2")
    number("--test_cases", type=int, metavar="N", help="so many labelled cases instead")
    split(
        "--patient_pattern", metavar="REGEX", help="cases whose names share what it finds are one patient: never split"
    )
    split("--use_test_images", action="store_true", help="images below imagesTs without a label train as unlabelled")
    output = parser.add_argument_group("what is written").add_argument
    output("--output", type=Path, metavar="FOLDER", help="for dataset.json, with absolute paths, instead of FOLDER")
    output("--config", type=Path, metavar="FILE", help="instead of configs/datasets/NAME.yaml")
    output("--copy_to", type=Path, metavar="FOLDER", help="copy images and labels there, and dataset.json with them")
    output("--force", action="store_true", help="overwrite files that a person wrote or edited")
    output("--dry_run", action="store_true", help="show everything, write nothing")
    add("--debug", nargs="?", const="true", default="false", metavar="true", help="show a traceback with an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module. Returns the exit code, 2 for a mistake in the folder or an option, else 1."""
    options = vars(make_parser().parse_args(argv))
    debug = options.pop("debug").lower() != "false"
    for key in ("channels", "label_names"):
        options[key] = tuple(options[key]) if options[key] else None
    # MONAI takes seconds to import, and --help need not wait for it.
    from scripts.cli.errors import describe_error
    from scripts.dataset_setup.new_dataset import new_dataset
    from scripts.dataset_setup.roles import Request

    try:
        new_dataset(Request(**options))
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        mistake = isinstance(error, UserError)
        print(f"\nError: {error if mistake else describe_error(error)}", file=sys.stderr)  # not behind a progress bar
        return 2 if mistake else 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
