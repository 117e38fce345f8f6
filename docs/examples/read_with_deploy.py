# SPDX-License-Identifier: Apache-2.0
"""Run MONAI Deploy's `MonaiBundleInferenceOperator` on a bundle, in an environment with monai-deploy-app-sdk.

    python -m docs.examples.read_with_deploy --bundle BUNDLE --image IMAGE --expected IMAGE_seg.nii.gz

It runs on `models/model.ts`, on the bundle's folder, and on a renamed copy of `model.ts`, which the SDK refuses.
"""

from __future__ import annotations

import argparse
import pkgutil
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np

# The SDK is installed in a folder `monai` that may differ from the library's.
monai.__path__ = pkgutil.extend_path(monai.__path__, "monai")


def segment(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """Labels `(X, Y, Z)` of one image, from the operator's `compute`.

    The operator receives the image as the SDK's own DICOM operators pass it on: voxels `(Z, Y, X)` and their metadata
    keys. With other keys (`original_affine`), the SDK takes the array as it is and exchanges two axes.
    """
    from monai.deploy.core import AppContext, Application, Image, IOType
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    class Host(Application):
        def compose(self) -> None: ...

    class Received:
        def receive(self, name: str) -> Image:
            names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
            meta = dict(zip(names, map(float, image.header.get_zooms()), strict=True))
            meta["nifti_affine_transform"] = image.affine
            return Image(np.swapaxes(np.asarray(image.dataobj), 0, 2), meta)

        get = receive

    class Sent(dict):
        def get(self, name: str, default: Any = None) -> None:
            return None

        def emit(self, value: Any, name: str) -> None:
            self[name] = value

    sent = Sent()
    operator = MonaiBundleInferenceOperator(
        Host(),
        app_context=AppContext({"model": "no_models"}),  # the default is ./models, which this bundle has
        input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
        output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        bundle_path=path,
        name="operator",
    )
    operator.compute(Received(), sent, None)
    return np.swapaxes(sent["pred"].asnumpy(), 0, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--expected", type=Path, help="label volume of `monai.bundle run` for the same image")
    options = parser.parse_args(argv)
    image, script = nib.load(options.image), options.bundle / "models/model.ts"
    of_script, of_folder = segment(script, image), segment(options.bundle, image)
    values, counts = np.unique(of_script, return_counts=True)
    print(
        f"model.ts: {of_script.shape}, voxels of each label {dict(zip(values.tolist(), counts.tolist(), strict=True))}"
    )
    if options.expected:
        equal = (of_script == np.asarray(nib.load(options.expected).dataobj)).mean()
        print(f"equal to those of `monai.bundle run`: {equal:.3%}")
    print(f"folder: {of_folder.shape}, equal labels {(of_script == of_folder).mean():.2%}")
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(shutil.copy(script, Path(folder) / "renamed.ts"))
        try:
            print(f"renamed.ts: {segment(renamed, image).shape}")
        except Exception as error:  # whatever the SDK raises
            print(f"renamed.ts fails: {type(error).__name__}")


if __name__ == "__main__":
    main()
