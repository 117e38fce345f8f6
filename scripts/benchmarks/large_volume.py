# SPDX-License-Identifier: Apache-2.0
"""Time and most memory that inference takes for one large CT-like volume, generated on the spot.

    python -m scripts.benchmarks.large_volume --shape 512 512 800

Network, spacing and window are those of the demo, with random weights, which cost as much as trained ones. Measured is
`python -m monai.bundle run` itself, in a process of its own. Options that this command does not know go to it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser

from scripts.benchmarks.peak_memory import measure_command

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(ROOT / "configs" / name) for name in ("inference.yaml", "datasets/demo.yaml")]


def make_volume(path: Path, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """An int16 volume of a bright ball in noise, written without compression."""
    rng = np.random.default_rng(0)
    plane = rng.integers(-1000, 0, shape[:2], dtype=np.int16)
    volume = np.empty(shape, np.int16, order="F")
    x, y = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    for k, z in enumerate(np.linspace(-1, 1, shape[2])):
        volume[..., k] = np.roll(plane, k, axis=0) + np.where(x**2 + y**2 + z**2 < 0.5, 1000, 0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)


def make_model(path: Path, base_filters: int) -> None:
    """Random weights of the demo's network."""
    parser = ConfigParser()
    parser.read_config(CONFIGS)
    parser.update({"base_filters": base_filters})
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)


def words_of(folder: Path, base_filters: int, options: Sequence[str]) -> list[str]:
    """The command for `folder/scan.nii`, behind `python -m`."""
    return [
        *("monai.bundle", "run", "--config_file", str(CONFIGS)),
        *("--bundle_root", str(ROOT), "--dataset_dir", str(folder / "scan.nii"), "--ckpt_dir", str(folder / "models")),
        *("--output_dir", str(folder / "out"), "--base_filters", str(base_filters), *options),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=[512, 512, 800], help="voxels")
    parser.add_argument("--voxel", nargs=3, type=float, default=[0.8, 0.8, 0.8], help="size of a voxel, mm")
    parser.add_argument("--base_filters", type=int, default=8)
    options, others = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        make_volume(Path(folder, "scan.nii"), options.shape, options.voxel)
        make_model(Path(folder, "models/model.pt"), options.base_filters)
        seconds, mebibytes = measure_command(words_of(Path(folder), options.base_filters, others), ROOT)
    print(f"{' x '.join(map(str, options.shape))} voxels: {seconds:.0f} s, peak memory {mebibytes / 1024:.2f} GiB")


if __name__ == "__main__":
    main()
