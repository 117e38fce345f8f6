# SPDX-License-Identifier: Apache-2.0
"""Export a network as TorchScript, ONNX and `torch.export`, and compare each file, in its runtime, with the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from torch.export import Dim, ExportedProgram

from scripts.data.weights import preprocessing_record
from scripts.errors import UserError
from scripts.export.package import bundle_metadata
from scripts.export.settings import ROOT, ExportSettings
from scripts.files import atomic_write
from scripts.images.monai import label_dtype
from scripts.inference.models import EXPORTED_RECORD, load_model

# ------------------------------------------------------------------ the `inference.json` inside model.ts and model.pt2

TEMPLATE = ROOT / "configs/self_contained.yaml"
SHARED = ("preprocessing", "dataset", "dataloader", "inferer", "postprocessing")
ALLOWED = ("monai.", "torch.")


def self_contained(settings: ExportSettings) -> dict[str, Any]:
    """Return `configs/self_contained.yaml`, completed by the blocks `SHARED` of an inference configuration.

    The result uses only classes of monai and torch, so that it runs without `scripts/`.

    Raises:
        UserError: if these blocks use a class that is not part of monai or torch.
    """
    template = ConfigParser.load_config_file(str(TEMPLATE))
    config = template | {key: settings.parser[key] for key in SHARED}
    config = {key: _without_our_reader(_filled(node, key, set(config), settings)) for key, node in config.items()}
    foreign = sorted(set(foreign_names(config)))
    if foreign:
        raise UserError(
            f"model.ts can only carry classes of monai and torch, but the configuration uses {', '.join(foreign)}: "
            "replace them, or deploy the bundle's folder instead of model.ts."
        )
    return config


def _filled(node: Any, place: str, keys: Set[str], settings: ExportSettings) -> Any:
    """Return the node at `place` of a configuration, with references to keys outside `keys` replaced by values."""
    if isinstance(node, Mapping):
        return {name: _filled(value, f"{place}::{name}", keys, settings) for name, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, f"{place}::{index}", keys, settings) for index, value in enumerate(node)]
    if not isinstance(node, str) or set(re.findall(r"@(\w+)", node)) <= keys:
        return node
    if node == "@written_dtype":
        return label_dtype(settings.plain("written_values")).name
    return settings.plain(node[1:] if node.startswith("@") else place)


def _without_our_reader(node: Any) -> Any:
    """Remove this bundle's image reader, so that MONAI chooses one by the ending of the file."""
    if isinstance(node, Mapping):
        ours = str(node.get("reader", "")).startswith("scripts.")
        return {key: _without_our_reader(value) for key, value in node.items() if not (ours and key == "reader")}
    return [_without_our_reader(value) for value in node] if isinstance(node, list) else node


def foreign_names(node: Any) -> Iterator[str]:
    """Yield the classes and modules in a configuration that are not part of monai or torch."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            located = ConfigComponent(node, "", ComponentLocator()).resolve_module_name()
            if not located.startswith(ALLOWED):
                yield target
        for value in node.values():
            yield from foreign_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from foreign_names(value)
    elif isinstance(node, str) and node.startswith("$"):
        yield from re.findall(r"\b(?:scripts|ignite)\b[\w.]*", node)


# ------------------------------------------------------------------ a function for each format

EXAMPLE_SIDES = (2, 3, 4)
"""Sides of the example in units of the divisor: all different, and not 1, which torch.export treats as constant."""


def export_torchscript(settings: ExportSettings, path: Path) -> None:
    """Write `model.ts` with MONAI's `ckpt_export`, with `metadata.json` and a self-contained `inference.json` inside.

    The root folder inside the archive is named after the file. MONAI Deploy relies on this, so do not rename the file.

    Raises:
        UserError: if the weights do not fit the network, or the configuration needs `scripts/`.
    """
    settings.network()
    with _folder_beside(path, _room(settings)) as folder:
        files = {"metadata.json": bundle_metadata(settings), **_configs(settings)}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        ckpt_export(
            net_id="network_def",
            filepath=str(folder / path.name),
            ckpt_file=str(settings.ckpt_file),
            meta_file=str(folder / "metadata.json"),
            config_file=[str(folder / name) for name in ("inference.json", EXPORTED_RECORD)],
            network_def=settings.plain("network_def"),
        )
        os.replace(folder / path.name, path)


def export_program(settings: ExportSettings, path: Path) -> None:
    """Write `model.pt2`, which `torch.export.load(path).module()` reads.

    The model accepts any batch size; sides must be multiples of the divisor. As in `model.ts`, `metadata.json` and
    `inference.json` are stored in the file.

    Raises:
        UserError: if the weights do not fit the network.
    """
    program = _program(settings)
    files = {"metadata.json": bundle_metadata(settings), **_configs(settings)}
    extra = {name: json.dumps(content) for name, content in files.items()}
    # torch requires the ending .pt2, which the temporary name of atomic_write does not have.
    with _folder_beside(path, _room(settings)) as folder:
        torch.export.save(program, folder / path.name, extra_files=extra)
        os.replace(folder / path.name, path)


def export_onnx(settings: ExportSettings, path: Path) -> None:
    """Write `model.onnx`, with input `image` and output `pred`; any batch size, sides multiples of the divisor.

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


def _configs(settings: ExportSettings) -> dict[str, Any]:
    """Return the inference configuration and the preprocessing record, which `load_model` compares, by file name."""
    return {
        "inference.json": self_contained(settings),
        EXPORTED_RECORD: preprocessing_record(settings.value("dataset_spec")),
    }


def _program(settings: ExportSettings) -> ExportedProgram:
    """Export the graph of the network, with dynamic batch size, depth, height and width."""
    divisor = settings.value("size_divisor")
    image = torch.zeros(2, settings.value("in_channels"), *(side * divisor for side in EXAMPLE_SIDES))
    sides = {axis: divisor * Dim(name) for axis, name in enumerate(("depth", "height", "width"), start=2)}
    return torch.export.export(settings.network(), (image,), dynamic_shapes=({0: Dim("batch"), **sides},))


def _room(settings: ExportSettings) -> int:
    """Return an upper bound for the size of an exported file in bytes: twice the weights, and 1 MiB for the program."""
    return 2 * settings.ckpt_file.stat().st_size + 2**20


@contextmanager
def _folder_beside(path: Path, room: int) -> Iterator[Path]:
    """Create a temporary folder on the same disk, where a file is written under its final name before it is moved.

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


# ------------------------------------------------------------------ comparison

MAX_LOGIT_DIFFERENCE = 1e-3
MIN_AGREEMENT = 0.9999
SIDES = ((2, 2, 2), (4, 3, 2), (2, 3, 5))
"""Sides in units of the divisor. All differ from the example that the export traces."""

BATCHES = (1, 3)


@dataclass(frozen=True)
class Comparison:
    """Result of one file on one input of shape `(B, C, D, H, W)`.

    `logit_difference` is the largest absolute difference of logits, `agreement` the fraction of equal labels.
    """

    file: str
    shape: tuple[int, ...]
    logit_difference: float
    agreement: float

    @property
    def passes(self) -> bool:
        """Whether both values are within their limits; a difference of NaN does not pass."""
        return self.logit_difference < MAX_LOGIT_DIFFERENCE and self.agreement > MIN_AGREEMENT


def compare(settings: ExportSettings, files: Sequence[Path], seed: int = 0) -> list[Comparison]:
    """Compare every file with the network in PyTorch, fp32 on the CPU, on standard normal images of several sizes.

    Args:
        settings: configuration and weights that the files were exported from.
        files: `.ts`, `.pt2` or `.onnx`.
        seed: seed of the random images.

    Raises:
        UserError: if a file is missing, has another ending, or needs a runtime that is not installed.
    """
    network = settings.network()
    divisor, channels = settings.value("size_divisor"), settings.value("in_channels")
    generator = torch.Generator().manual_seed(seed)
    runs = {str(file): load_model(file, network, "cpu") for file in files}
    rows = []
    with torch.no_grad():
        for sides in SIDES:
            for batch in BATCHES:
                image = torch.randn(batch, channels, *(side * divisor for side in sides), generator=generator)
                expected = network(image)
                for name, run in runs.items():
                    found = run(image)
                    same = (found.argmax(1) == expected.argmax(1)).double().mean().item()
                    rows.append(Comparison(name, tuple(image.shape), (found - expected).abs().max().item(), same))
    return rows


def table(rows: Sequence[Comparison]) -> str:
    """Format the comparisons as a text table, one per line; the last line says how many do not pass."""
    width = max(len(row.file) for row in rows)
    lines = [f"{'file':{width}}  {'batch and sides':>15}  logit difference  equal labels"]
    for row in rows:
        shape = "x".join(str(side) for side in (row.shape[0], *row.shape[2:]))
        mark = "" if row.passes else "  TOO FAR"
        lines.append(f"{row.file:{width}}  {shape:>15}  {row.logit_difference:16.1e}  {row.agreement:12.4%}{mark}")
    failed = sum(not row.passes for row in rows)
    lines.append(
        f"{len(rows)} comparisons, {failed} with a logit difference of {MAX_LOGIT_DIFFERENCE:g} or more, or "
        f"{MIN_AGREEMENT:.2%} or fewer equal labels."
    )
    return "\n".join(lines)
