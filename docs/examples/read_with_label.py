# SPDX-License-Identifier: Apache-2.0
"""Infer and train with MONAI Label's own tasks on an unpacked bundle, in an environment with monailabel.

    python -m docs.examples.read_with_label --bundle BUNDLE --image IMAGE --train IMAGE LABEL --train IMAGE LABEL

The tasks are those that MONAI Label's bundle app builds; no server is started. docs/readers.md names the packages.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import monai.transforms.spatial.dictionary as spatial
import nibabel as nib
import numpy as np


def patch_libraries() -> None:
    """Work around two incompatibilities of MONAI Label 0.8.5 and MONAI 1.6.1, which affect every bundle.

    MONAI's `Spacingd` updates every entry whose name begins with `image_`, although MONAI Label's `image_path` is a
    text; and MONAI Label imports two functions of torchvision, which is not available for every CPU build of torch.
    """
    spatial.is_supported_format = lambda *_: False
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        utils = types.ModuleType("torchvision.utils")
        utils.make_grid = utils.save_image = None
        sys.modules["torchvision"], sys.modules["torchvision.utils"] = types.ModuleType("torchvision"), utils


class Cases:
    """A datastore with the one method that MONAI Label's training task calls."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def datalist(self) -> list[dict[str, str]]:
        """Labelled cases, as MONAI Label lists them."""
        return [{"image": image, "label": label} for image, label in self.pairs]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--train", nargs=2, action="append", default=[], metavar=("IMAGE", "LABEL"))
    options = parser.parse_args(argv)
    patch_libraries()
    from monailabel.tasks.infer.bundle import BundleInferTask
    from monailabel.tasks.train.bundle import BundleTrainTask

    task = BundleInferTask(str(options.bundle.resolve()), {"preload": "false"}, type="segmentation")
    request = {"image": options.image, "device": "cpu", "result_dtype": "uint8", "result_compress": False}
    file, _ = task(request)
    image, label = nib.load(options.image), nib.load(file)
    print(f"labels {task.labels}; written {label.shape} for an image of {image.shape}")
    print(f"same grid: {np.allclose(image.affine, label.affine)}; values {np.unique(np.asarray(label.dataobj))}")
    if options.train:
        weights = options.bundle / "models/model.pt"
        before = weights.stat().st_mtime
        request = {"model": "segmentation", "device": "cpu", "max_epochs": 1, "multi_gpu": False, "tracking": "None"}
        BundleTrainTask(str(options.bundle.resolve()), {})(request, Cases(options.train))
        print(f"trained for one epoch; new model.pt: {weights.stat().st_mtime > before}")


if __name__ == "__main__":
    main()
