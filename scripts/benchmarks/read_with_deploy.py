# SPDX-License-Identifier: Apache-2.0
"""Run MONAI Deploy's `MonaiBundleInferenceOperator` on a bundle (in an environment that has monai-deploy-app-sdk).

    python -m scripts.benchmarks.read_with_deploy --bundle BUNDLE --image IMAGE

Once on `models/model.ts`, once on the folder, and once on a renamed copy of `model.ts`, which the SDK refuses.
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

# The SDK lies in a folder `monai` of its own, which may be another one than the library's.
monai.__path__ = pkgutil.extend_path(monai.__path__, "monai")


def segment(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """The operator's `compute` on one image in memory; labels as the SDK arranges them, `(Z, Y, X)`."""
    from monai.deploy.core import AppContext, Application, Image, IOType
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    class Host(Application):
        def compose(self) -> None: ...

    class Received:
        def receive(self, name: str) -> Image:
            meta = {"spacing": image.header.get_zooms(), "original_affine": image.affine, "affine": image.affine}
            meta |= {"spatial_shape": np.array(image.shape), "original_channel_dim": "no_channel"}
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
        app_context=AppContext({}),
        input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
        output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        bundle_path=path,
        name="operator",
    )
    operator.compute(Received(), sent, None)
    return sent["pred"].asnumpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    options = parser.parse_args(argv)
    image, script = nib.load(options.image), options.bundle / "models/model.ts"
    of_script, of_folder = segment(script, image), segment(options.bundle, image)
    values, counts = np.unique(of_script, return_counts=True)
    print(
        f"model.ts: {of_script.shape}, voxels of each label {dict(zip(values.tolist(), counts.tolist(), strict=True))}"
    )
    print(f"folder: {of_folder.shape}, equal labels {(of_script == of_folder).mean():.2%}")
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(shutil.copy(script, Path(folder) / "renamed.ts"))
        try:
            print(f"renamed.ts: {segment(renamed, image).shape}")
        except Exception as error:  # whatever the SDK raises
            print(f"renamed.ts fails: {type(error).__name__}")


if __name__ == "__main__":
    main()
