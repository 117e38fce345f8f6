# SPDX-License-Identifier: Apache-2.0
"""Compare the time and result of inference with those of MONAI's inferer and of the SS-Net authors' code.

    python -m scripts.experiments.inference --reference SSNET/code --shape 200 150 88

It segments one volume with 16 filters and windows of 112 x 112 x 80. `--reference` is the folder `code` of
https://github.com/ycwu1997/SS-Net, whose `test_single_case` is run unchanged, on the CPU. All networks have the same
weights: random ones, or those of `--weights`, a state dict that the authors published.

Methods run in turn; tables show medians. `--json` writes the same numbers with machine, versions and all repeats.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import monai
import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity, Orientation, Spacing
from torch import nn

from scripts.inference.models import InferenceNetwork
from scripts.inference.segmenter import MirroredNetwork
from scripts.inference.streaming import longest_axis, stitched_rows
from scripts.networks.vnet import VNet, load_reference_backbone
from scripts.training.precision import autocast_dtype, place

Method = Callable[[torch.Tensor], np.ndarray]
"""Maps a volume `(C, D, H, W)` to class indices `(D, H, W)`."""


@contextmanager
def reference_modules(folder: Path) -> Iterator[None]:
    """Make the authors' modules importable, without the packages that only their file reading and metrics need."""
    stand_ins = {name: ModuleType(name) for name in ("h5py", "medpy", "skimage", "skimage.measure")}
    stand_ins["medpy"].metric = stand_ins["skimage.measure"].label = None  # type: ignore[attr-defined]
    with (
        patch.dict(sys.modules, stand_ins),
        patch.object(sys, "path", [str(folder), *sys.path]),
        patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
        patch.object(np, "int", int, create=True),
    ):
        yield


def reference_method(folder: Path, state: dict[str, torch.Tensor] | None, options: argparse.Namespace) -> Any:
    """The authors' network, and their sliding windows as a method."""
    with reference_modules(folder):
        network = importlib.import_module("networks.VNet").VNet(
            n_channels=1, n_classes=2, n_filters=options.filters, normalization="batchnorm", has_dropout=False
        )
        test_single_case = importlib.import_module("utils.test_3d_patch").test_single_case
    if state is not None:
        network.load_state_dict(state, strict=False)
    network.eval()
    across, _, along = options.strides

    def method(volume: torch.Tensor) -> np.ndarray:
        with reference_modules(folder):
            return test_single_case(network, volume[0].numpy(), across, along, options.window, num_classes=2)[0]

    return network, method


def methods(options: argparse.Namespace) -> dict[str, Method]:
    """All methods by name, with the same weights."""
    torch.manual_seed(0)
    found: dict[str, Method] = {}
    state = torch.load(options.weights, map_location="cpu", weights_only=True) if options.weights else None
    network = VNet(1, 2, options.filters, norm="batch").eval()
    if options.reference:
        theirs, found["authors, their strides"] = reference_method(options.reference, state, options)
        load_reference_backbone(network, theirs.state_dict())
    elif state is not None:
        load_reference_backbone(network, state)
    dtype = autocast_dtype(options.precision, "cpu")
    ours = MirroredNetwork(InferenceNetwork(place(copy.deepcopy(network), "cpu"), dtype))
    equal = [overlap_of(stride, side) for stride, side in zip(options.strides, options.window, strict=True)]
    for words, overlap, mode in (("their strides", equal, "constant"), ("overlap 0.5", 0.5, "gaussian")):
        inferer = SlidingWindowInferer(options.window, options.batch, overlap, mode)
        found[f"MONAI, {words}"] = _whole(inferer, network)
        found[f"ours, {words}"] = _streamed(inferer, ours)
    return found


def overlap_of(stride: int, window: int) -> float:
    """The overlap for which MONAI's `int(window * (1 - overlap))` is `stride`, also after rounding errors."""
    return 1 - (stride + 0.5) / window


def _whole(inferer: SlidingWindowInferer, network: nn.Module) -> Method:
    @torch.no_grad()
    def method(volume: torch.Tensor) -> np.ndarray:
        return inferer(volume[None], network)[0].argmax(dim=0).numpy()

    return method


def _streamed(inferer: SlidingWindowInferer, network: Callable[[torch.Tensor], torch.Tensor]) -> Method:
    def method(volume: torch.Tensor) -> np.ndarray:
        axis = longest_axis(volume.shape[1:], inferer.roi_size)
        blocks = [logits.argmax(dim=0) for _, logits in stitched_rows(volume, inferer, network, axis)]
        return torch.cat(blocks, dim=axis).numpy()

    return method


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    """Dice of two masks, in [0, 1]; 1 if both are empty."""
    total = int(prediction.sum()) + int(label.sum())
    return 2 * int((prediction & label).sum()) / total if total else 1.0


def in_turn(
    calls: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each call in each repeat, A B A B, and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            results[name] = call()
            seconds[name].append(clock() - start)
    return seconds, results


def compare_windows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time (CPU time for one thread, as other work counts less), ratio and agreement of every method on one volume."""
    volume, label = _volume(options)
    options.shape = list(volume.shape[1:])
    count = len(dense_patch_slices(options.shape, options.window, options.strides))
    print(f"{_size(options.shape)} voxels, {count} windows of {_size(options.window)} with their strides")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    wanted = {name: method for name, method in methods(options).items() if not options.only or name in options.only}
    calls: dict[str, Callable[[], Any]] = {name: partial(method, volume) for name, method in wanted.items()}
    seconds, results = in_turn(calls, options.repeats, clock)
    first = next(iter(results))
    rows = []
    for name, result in results.items():
        median = statistics.median(seconds[name])
        row = {"method": name, "seconds": median, "repeats": seconds[name]}
        row["times as fast"] = statistics.median(seconds[first]) / median
        row["equal voxels"] = float((result == results[first]).mean())
        if label is not None:
            row["dice"] = dice(result > 0, label)
        rows.append(row)
    return rows


def _volume(options: argparse.Namespace) -> tuple[torch.Tensor, np.ndarray | None]:
    """A normalised volume `(1, D, H, W)` and its label `(D, H, W)`, or noise of `--shape` and `None`."""
    if options.image is None:
        return torch.randn(1, *options.shape, generator=torch.Generator().manual_seed(0)), None

    def read(path: Path, mode: str) -> torch.Tensor:
        load = [LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)]
        return Compose([*load, Spacing(options.spacing, mode=mode)])(path).as_tensor().float()

    image = NormalizeIntensity()(read(options.image, "bilinear"))
    return image, None if options.label is None else read(options.label, "nearest")[0].numpy() > 0


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = [column for column in rows[0] if column != "repeats"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [f"{row[c]:.4f}" if c in ("dice", "equal voxels") else row[c] for c in columns]
        lines.append("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--reference", type=Path, help="the folder `code` of the authors' repository")
    option("--weights", type=Path, help="a state dict that the authors published")
    option("--image", type=Path, help="an image of one channel; without it the volume is noise")
    option("--label", type=Path, help="label of the image: every value above 0 counts")
    option("--spacing", nargs=3, type=float, default=[0.625, 0.625, 0.625], help="mm to which the image is resampled")
    option("--shape", nargs=3, type=int, default=[200, 150, 88], help="voxels of the noise")
    option("--window", nargs=3, type=int, default=[112, 112, 80])
    option("--strides", nargs=3, type=int, default=[18, 18, 4], help="of the authors; the first two are equal")
    option("--filters", type=int, default=16)
    option("--batch", type=int, default=4, help="windows per forward pass of MONAI, and at most of ours")
    option("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    option("--only", nargs="*", default=[], metavar="METHOD", help="methods of the table to run, in its words")
    option("--repeats", type=int, default=3)
    option("--threads", type=int, default=1)
    option("--json", type=Path, help="file for the numbers")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    options = make_parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = compare_windows(options)
    print(table(rows))
    if options.json:
        machine = {"machine": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()}
        versions = {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__}
        settings = {key: str(value) for key, value in vars(options).items()}
        content = {**machine, "cores": os.cpu_count(), **versions, "options": settings, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
