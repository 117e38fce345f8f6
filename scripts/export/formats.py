# SPDX-License-Identifier: Apache-2.0
"""Export a network, with one function per format: TorchScript, ONNX and `torch.export`."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from monai.bundle import ckpt_export
from torch.export import Dim, ExportedProgram

from scripts.errors import UserError
from scripts.export.package import bundle_metadata
from scripts.export.self_contained import self_contained
from scripts.export.settings import ExportSettings
from scripts.files import atomic_write

EXAMPLE_SIDES = (2, 3, 4)
"""Sides of the example in units of the divisor: all different, and none 1, which torch.export treats as constant."""


def export_torchscript(settings: ExportSettings, path: Path) -> None:
    """Write `model.ts` with MONAI's `ckpt_export`, with `metadata.json` and a self-contained `inference.json` inside.

    The root folder inside the archive is named after the file. MONAI Deploy relies on this, so do not rename the file.

    Raises:
        UserError: if the weights do not fit the network, or the configuration needs `scripts/`.
    """
    settings.network()
    with _folder_beside(path, _room(settings)) as folder:
        files = {"inference.json": self_contained(settings), "metadata.json": bundle_metadata(settings)}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        ckpt_export(
            net_id="network_def",
            filepath=str(folder / path.name),
            ckpt_file=str(settings.ckpt_file),
            meta_file=str(folder / "metadata.json"),
            config_file=str(folder / "inference.json"),
            network_def=settings.plain("network_def"),
        )
        os.replace(folder / path.name, path)


def export_program(settings: ExportSettings, path: Path) -> None:
    """Write `model.pt2`, which `torch.export.load(path).module()` reads; any batch size.

    Sides must be multiples of the divisor. As in `model.ts`, `metadata.json` and `inference.json` are extra files.

    Raises:
        UserError: if the weights do not fit the network.
    """
    program = _program(settings)
    extra = {
        "metadata.json": json.dumps(bundle_metadata(settings)),
        "inference.json": json.dumps(self_contained(settings)),
    }
    # torch requires the ending .pt2, which the temporary name of atomic_write does not have.
    with _folder_beside(path, _room(settings)) as folder:
        torch.export.save(program, folder / path.name, extra_files=extra)
        os.replace(folder / path.name, path)


def export_onnx(settings: ExportSettings, path: Path) -> None:
    """Write `model.onnx`: input `image`, output `pred`; any batch size, sides multiples of the divisor.

    Raises:
        UserError: if onnx or onnxscript is not installed, or the weights do not fit the network.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("The export to ONNX needs onnx and onnxscript: run `pip install -r requirements-export.txt`.")
    program = _program(settings)
    with atomic_write(path) as beside:
        torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=["pred"],
            external_data=False,  # one file; the weights are far below ONNX's limit of 2 GiB
            f=str(beside),
            verbose=False,
        )


def _program(settings: ExportSettings) -> ExportedProgram:
    """The graph of the network, with dynamic batch size, depth, height and width."""
    divisor = settings.value("size_divisor")
    image = torch.zeros(2, settings.value("in_channels"), *(side * divisor for side in EXAMPLE_SIDES))
    sides = {axis: divisor * Dim(name) for axis, name in enumerate(("depth", "height", "width"), start=2)}
    return torch.export.export(settings.network(), (image,), dynamic_shapes=({0: Dim("batch"), **sides},))


def _room(settings: ExportSettings) -> int:
    """Upper estimate of the size of an exported file in bytes: twice the weights, and 1 MiB for the program."""
    return 2 * settings.ckpt_file.stat().st_size + 2**20


@contextmanager
def _folder_beside(path: Path, room: int) -> Iterator[Path]:
    """A temporary folder on the same disk, where a file is written under its final name before it is moved.

    Raises:
        UserError: if less than `room` bytes are free. Without this check, a full disk makes torch's writers of programs
            abort the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        try:
            _reserve(Path(folder, "room"), room)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): free {room / 2**20:.0f} MiB, or give another "
                "path with --filepath."
            ) from error
        yield Path(folder)


def _reserve(path: Path, size: int) -> None:
    """Allocate `size` bytes on the disk and free them again."""
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    path.unlink(missing_ok=True)


EXPORTERS: dict[str, Callable[[ExportSettings, Path], None]] = {
    "ts": export_torchscript,
    "onnx": export_onnx,
    "pt2": export_program,
}
