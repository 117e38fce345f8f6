# SPDX-License-Identifier: Apache-2.0
"""Compare the time and result of inference with those of MONAI's inferer and of the SS-Net authors' code.

    python -m scripts.experiments.inference --reference SSNET/code --shape 200 150 88

It segments noise on the CPU with windows of 112 x 112 x 80 and a V-Net of 16 filters, or a `ResidualUNet` with its
defaults. `--reference` is the folder `code` of https://github.com/ycwu1997/SS-Net, whose V-Net and `test_single_case`
are run unchanged. All networks have the same random weights. Methods run in turn; the table shows medians.
"""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import nn

from scripts.experiments.measure import median_seconds, reference_modules, run_measurement, size_text
from scripts.inference.models import InferenceNetwork
from scripts.inference.segmenter import MirroredNetwork
from scripts.inference.streaming import longest_axis, stitched_rows
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet, load_reference_backbone
from scripts.training.precision import autocast_dtype, place

STRIDES = (18, 18, 4)
"""Strides of the authors, in voxels."""

BATCH = 4
"""Windows per forward pass of MONAI's inferer, and maximum of ours; the authors' code uses 1."""

Method = Callable[[torch.Tensor], np.ndarray]
"""Maps a volume `(C, D, H, W)` to class indices `(D, H, W)`."""


def reference_method(folder: Path, options: argparse.Namespace) -> tuple[nn.Module, Method]:
    """Return the authors' network, and their sliding windows as a method."""
    with reference_modules(folder):
        network = importlib.import_module("networks.VNet").VNet(
            n_channels=1, n_classes=2, n_filters=options.filters, normalization="batchnorm", has_dropout=False
        )
        test_single_case = importlib.import_module("utils.test_3d_patch").test_single_case
    network.eval()
    across, _, along = STRIDES

    def method(volume: torch.Tensor) -> np.ndarray:
        with reference_modules(folder):
            return test_single_case(network, volume[0].numpy(), across, along, options.window, num_classes=2)[0]

    return network, method


def methods(options: argparse.Namespace) -> dict[str, Method]:
    """Return all methods by name, with the same weights."""
    torch.manual_seed(0)
    found: dict[str, Method] = {}
    residual = options.network == "residual_unet"
    network = (ResidualUNet(1, 2) if residual else VNet(1, 2, options.filters, norm="batch")).eval()
    if options.reference:
        theirs, found["authors, their strides"] = reference_method(options.reference, options)
        load_reference_backbone(network, theirs.state_dict())
    dtype = autocast_dtype(options.precision, "cpu")
    ours = MirroredNetwork(InferenceNetwork(place(copy.deepcopy(network), "cpu"), dtype))
    equal = [overlap_of(stride, side) for stride, side in zip(STRIDES, options.window, strict=True)]
    for words, overlap, mode in (("their strides", equal, "constant"), ("overlap 0.5", 0.5, "gaussian")):
        inferer = SlidingWindowInferer(options.window, BATCH, overlap, mode)
        found[f"MONAI, {words}"] = _whole(inferer, network)
        found[f"ours, {words}"] = _streamed(inferer, ours)
    return found


def overlap_of(stride: int, window: int) -> float:
    """Return the overlap for which MONAI's `int(window * (1 - overlap))` is `stride`, despite rounding errors."""
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


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure median seconds of every method on one volume, and the ratio and agreement to the first method.

    With one thread, seconds are processor time, which is less affected by other work on the machine.
    """
    torch.set_num_threads(options.threads)
    volume = torch.randn(1, *options.shape, generator=torch.Generator().manual_seed(0))
    count = len(dense_patch_slices(options.shape, options.window, STRIDES))
    print(f"{size_text(options.shape)} voxels, {count} windows of {size_text(options.window)} with their strides")
    wanted = {name: method for name, method in methods(options).items() if not options.only or name in options.only}
    results: dict[str, np.ndarray] = {}
    calls = {name: partial(_keep, results, name, method, volume) for name, method in wanted.items()}
    seconds = median_seconds(calls, options.repeats, processor=options.threads == 1, warm_up=0)
    first = next(iter(calls))
    return [
        {
            "method": name,
            "time s": round(seconds[name], 3),
            "times as fast": round(seconds[first] / seconds[name], 2),
            "equal voxels": round(float((results[name] == results[first]).mean()), 4),
        }
        for name in calls
    ]


def _keep(results: dict[str, np.ndarray], name: str, method: Method, volume: torch.Tensor) -> None:
    results[name] = method(volume)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(function=compare)
    option = parser.add_argument
    option("--reference", type=Path, help="the folder `code` of the authors' repository")
    option("--shape", nargs=3, type=int, default=[200, 150, 88], help="voxels of the volume")
    option("--window", nargs=3, type=int, default=[112, 112, 80])
    option("--network", choices=["vnet", "residual_unet"], default="vnet")
    option("--filters", type=int, default=16, help="of the V-Net")
    option("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    option("--only", nargs="*", default=[], metavar="METHOD", help="methods of the table to run, in its words")
    option("--repeats", type=int, default=3)
    option("--threads", type=int, default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser = make_parser()
    run_measurement(parser, {"": parser.add_argument}, argv)


if __name__ == "__main__":
    main()
