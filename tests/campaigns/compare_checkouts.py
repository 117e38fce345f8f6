# SPDX-License-Identifier: Apache-2.0
"""Does another checkout of this project compute the same, to the bit?

    python -m tests.campaigns.compare_checkouts BEFORE AFTER --work_dir FOLDER

In each of the two checkouts, every method trains on the demo with seed 0 in fp32, is evaluated on the test cases, and
segments one of them. Compared are the weights of `model.pt`, `metrics.csv`, and the voxels of the label volume. Runs
that already lie in the working folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

METHODS = ("default", "supervised", "ssnet", "semiseg_contrastive", "corn", "prototype")


def run_bundle(checkout: Path, *words: str) -> None:
    """Run `python -m monai.bundle run ...` in a checkout, with one thread."""
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)


def run_method(checkout: Path, method: str, folder: Path, steps: int, demo: Path) -> None:
    """Train, evaluate and infer with one method; a finished run is left as it is."""
    if (folder / "done").exists():
        return
    files = ["configs/train.yaml", *([] if method == "default" else [f"configs/methods/{method}.yaml"])]
    paths = ["--dataset_dir", str(demo), "--output_dir", str(folder), "--ckpt_dir", str(folder / "models")]
    run_bundle(checkout, "training", "--config_file", str(files), *paths, "--max_steps", str(steps), "--seed", "0",
               "--precision", "fp32", "--device", "cpu")  # fmt: skip
    run_bundle(checkout, "evaluating", "--config_file", str([*files, "configs/evaluate.yaml"]), *paths)
    image = demo / json.loads((demo / "dataset.json").read_text())["test"][0]["image"]
    run_bundle(checkout, "--config_file", str(["configs/inference.yaml", "configs/datasets/demo.yaml"]),
               "--dataset_dir", str(image), "--output_dir", str(folder / "inference"),
               "--ckpt_dir", str(folder / "models"), "--device", "cpu")  # fmt: skip
    (folder / "done").touch()


def differences(before: Path, after: Path) -> tuple[float, bool, int]:
    """Largest difference of a weight (infinite for other keys), equal metrics, and number of differing voxels."""
    first, second = (torch.load(run / "models" / "model.pt", weights_only=True) for run in (before, after))
    if first.keys() != second.keys():
        weights = float("inf")
    else:
        weights = max(float((first[key].double() - second[key].double()).abs().max()) for key in first)
    metrics = (before / "metrics.csv").read_bytes() == (after / "metrics.csv").read_bytes()
    volumes = [nib.load(_label_volume(run)).get_fdata() for run in (before, after)]
    return weights, metrics, int(np.count_nonzero(volumes[0] != volumes[1]))


def _label_volume(run: Path) -> Path:
    (found,) = (run / "inference").rglob("*.nii.gz")
    return found


def main() -> None:
    """Run both checkouts, print a table, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    work_dir = options.work_dir.resolve()
    print("| method | largest difference of a weight | metrics.csv | differing voxels of an inference |")
    print("|---|---|---|---|")
    same = True
    for method in options.methods:
        for name, checkout in (("before", options.before), ("after", options.after)):
            demo = work_dir / "demo"
            run_method(checkout.resolve(), method, work_dir / name / method, options.steps, demo)
        weights, metrics, voxels = differences(work_dir / "before" / method, work_dir / "after" / method)
        same = same and weights == 0 and metrics and voxels == 0
        print(f"| {method} | {weights:.1e} | {'equal' if metrics else 'DIFFERENT'} | {voxels} |", flush=True)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
