# SPDX-License-Identifier: Apache-2.0
"""Turn the public left atrium volumes into NIfTI files and a dataset.json, for configs/datasets/left_atrium_full.yaml.

    python -m scripts.cli.convert_left_atrium FOLDER OUTPUT

FOLDER holds a folder for each case, with `lgemri.nrrd` and `laendo.nrrd` (the 2018 Atrial Segmentation Challenge,
labels 0 and 255), or with an `.h5` file that holds `image` and `label` (`mri_norm2.h5` of UA-MT and its successors;
needs h5py). OUTPUT/images and OUTPUT/labels then hold a `.nii.gz` file for each, labels 0 and 1.

Split: where FOLDER, or the folder that it lies in, has `train.list` and `test.list` (UA-MT's 80 and 20 cases), they say
which case trains, in which order, and which tests. Else a fifth of the cases tests, by the hash of their names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import UserError

CROP_HELP = """\
cut volumes around the label, as published numbers have it (the .h5 files come cropped). Where to cut is read off the
label, of test cases too, which nobody has for a new scan: use it only to compare with numbers obtained so"""


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cli.convert_left_atrium",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--crop", action="store_true", help=CROP_HELP)
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module. Returns the exit code, 2 for a mistake in the folder or an option."""
    options = make_parser().parse_args(argv)
    from scripts.dataset_setup.left_atrium import convert

    try:
        convert(options.folder, options.output, options.crop)
    except UserError as error:
        if options.debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
