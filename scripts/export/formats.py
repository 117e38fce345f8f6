# SPDX-License-Identifier: Apache-2.0
"""One function per format: TorchScript, ONNX, and the program of `torch.export`."""

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
"""Sides of the example in units of the divisor: no two the same, and none 1, which torch.export takes for constant."""


def export_torchscript(settings: ExportSettings, path: Path) -> None:
    """Write `model.ts` by MONAI's `ckpt_export`, with `metadata.json` and a self-contained `inference.json` inside.

    The root folder inside the archive is called as the file, and MONAI Deploy relies on it: do not rename the file.

    Raises:
        UserError: if weights and network do not fit, or the configuration needs `scripts/`.
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
    """Write `model.pt2`, which `torch.export.load(path).module()` reads; any batch, sides in multiples of the divisor.

    `metadata.json` and `inference.json` go with it as extra files, as in `model.ts`.

    Raises:
        UserError: if weights and network do not fit.
    """
    program = _program(settings)
    extra = {
        "metadata.json": json.dumps(bundle_metadata(settings)),
        "inference.json": json.dumps(self_contained(settings)),
    }
    # torch wants the ending .pt2, which a file written beside its name has not.
    with _folder_beside(path, _room(settings)) as folder:
        torch.export.save(program, folder / path.name, extra_files=extra)
        os.replace(folder / path.name, path)


def export_onnx(settings: ExportSettings, path: Path) -> None:
    """Write `model.onnx`: input `image`, output `pred`; any batch, sides in multiples of the divisor.

    Raises:
        UserError: if onnx and onnxscript are not installed, or weights and network do not fit.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("ONNX needs two more packages: pip install -r requirements-export.txt.")
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
    """The network's graph with batch, depth, height and width left open."""
    divisor = settings.value("size_divisor")
    image = torch.zeros(2, settings.value("in_channels"), *(side * divisor for side in EXAMPLE_SIDES))
    sides = {axis: divisor * Dim(name) for axis, name in enumerate(("depth", "height", "width"), start=2)}
    return torch.export.export(settings.network(), (image,), dynamic_shapes=({0: Dim("batch"), **sides},))


def _room(settings: ExportSettings) -> int:
    """Bytes that an exported file may need: the weights and, generously, the program."""
    return 2 * settings.ckpt_file.stat().st_size + 2**20


@contextmanager
def _folder_beside(path: Path, room: int) -> Iterator[Path]:
    """A folder on the same disk, gone at the end: a file is written there under its own name, then moved.

    Raises:
        UserError: if the disk has less space than `room`; torch's writers of programs would end the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        try:
            _reserve(Path(folder, "room"), room)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): free {room / 2**20:.0f} MiB, or name another place by "
                "--filepath."
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
