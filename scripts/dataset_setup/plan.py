# SPDX-License-Identifier: Apache-2.0
"""Choose training settings from the measured properties of a dataset."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.data.labels import LARGEST_VALUE
from scripts.dataset_setup.fingerprint import Fingerprint, Grid, Intensity, LabelValues
from scripts.dataset_setup.layouts import Description
from scripts.errors import UserError
from scripts.training.limits import activation_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CT_MINIMUM = -200  # HU; MR and PET do not reach such low values, and air is -1000
SMALL_VOLUME = 64**3  # voxels; up to this size full resolution costs little (docs/results/accuracy.md)
STEP_SHARE = 0.5  # fraction of the device memory that a training step may use
GPU_MEMORY = {"gpu8": 8 * 2**30, "gpu24": 24 * 2**30}  # bytes, by preset
PASSES = 4  # memory of a step relative to its activations: output, gradient, workspace of convolutions, further passes


@dataclass(frozen=True)
class Machine:
    """The machine to train on.

    Attributes:
        preset: `cpu`, `gpu8` or `gpu24`, for sizes that suit a CPU or a GPU with at least 8 or 24 GB.
        step_memory: memory of the training device in bytes.
    """

    preset: str
    step_memory: int

    @classmethod
    def of(cls, preset: str | None = None) -> Machine:
        """Return the machine of a preset; `None` for this machine.

        The total memory counts and not the free memory, so that the same folder always gives the same settings.
        """
        if preset in GPU_MEMORY:
            return cls(preset, GPU_MEMORY[preset])
        if preset is None and torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            return cls("gpu24" if memory > 20 * 2**30 else "gpu8", memory)
        return cls("cpu", psutil.virtual_memory().total)


@dataclass(frozen=True)
class Preset:
    """Sizes that a kind of machine can train.

    Attributes:
        patch_voxels: maximum number of voxels of a patch. Larger patches may fit in memory, but a step would take many
            seconds.
        batches: candidates for the numbers of labelled and unlabelled patches per step; the first that fits in memory
            is used.
        widths: channels of the network's stages at full resolution, and after a stem of stride 2.
        max_steps: optimiser steps.
    """

    patch_voxels: int
    batches: tuple[tuple[int, int], ...]
    widths: tuple[list[int], list[int]]
    max_steps: int


PRESETS = {
    "cpu": Preset(64**3, ((2, 1),), ([16, 32, 64, 128], [24, 48, 96, 128]), 2000),
    "gpu8": Preset(96**3, ((2, 1),), ([32, 64, 128, 256], [32, 64, 128, 256]), 6000),
    "gpu24": Preset(128**3, ((4, 2), (2, 1)), ([32, 64, 128, 256], [32, 64, 128, 256]), 6000),
}


@dataclass(frozen=True)
class Plan:
    """Settings of a dataset's YAML.

    Attributes:
        in_channels: number of image channels.
        label_values: value of each class in the label files, background first.
        label_names: name of each class.
        ignore_value: label value of voxels to ignore (`None`: no such value).
        spacing: voxel size in mm, axes in RAS order.
        size: median size of a volume at that spacing, in voxels.
        windows: for each channel, the range to which CT intensities are clipped; `None` for z-scores.
        modality: `CT`, `other` or `CT and other`, and the reason for this choice.
        preset: the kind of machine that the sizes are for.
        stem_stride: 1, or 2 for large volumes.
        norm: normalisation layer of the network.
        widths: channels of the network's stages.
        roi_size: patch size in voxels.
        batch_labelled: labelled patches per step.
        batch_unlabelled: unlabelled patches per step.
        max_steps: optimiser steps.
    """

    in_channels: int
    label_values: list[int]
    label_names: list[str]
    ignore_value: int | None
    spacing: list[float]
    size: list[int]
    windows: list[tuple[float, float] | None]
    modality: tuple[str, str]
    preset: str
    stem_stride: int
    norm: str
    widths: list[int]
    roi_size: list[int]
    batch_labelled: int
    batch_unlabelled: int
    max_steps: int


def median_grid(grids: Sequence[Grid]) -> tuple[list[float], list[int]]:
    """Return the median spacing (mm), and the median size (voxels) of volumes resampled to it."""
    spacings = np.array([grid.spacing for grid in grids])
    spacing = np.median(spacings, axis=0).round(4)
    sizes = np.array([grid.shape for grid in grids]) * spacings / spacing
    return [float(s) for s in spacing], [max(1, round(float(n))) for n in np.median(sizes, axis=0)]


def classes_of(
    values: LabelValues,
    description: Description,
    names: Sequence[str] | None,
    ignore_value: int | None,
    segments: Mapping[int, str] | None = None,
) -> tuple[list[int], list[str]]:
    """Return value and name of each class: 0 for background, and all values in label files or in `dataset.json`.

    Args:
        values: values in the label files.
        description: names of the values.
        names: the user's names, one per class; `None` for the names in the description.
        ignore_value: value that is not a class.
        segments: names in the headers of label files, used for values without a name in the description.

    Raises:
        UserError: for a wrong number of names, a name that MONAI would evaluate, a single class, a negative value, a
            value beyond `LARGEST_VALUE`, or names in label files that contradict the description.
    """
    for value, name in (segments or {}).items():
        for other, declared in description.label_names.items():
            if declared.casefold() == name.casefold() and other != value:
                raise UserError(
                    f"Label files have the value {value} for {name}, but dataset.json declares {other} for it: correct "
                    "dataset.json."
                )
    known = {**(segments or {}), **description.label_names}
    background = next((value for value, name in description.label_names.items() if name.lower() == "background"), 0)
    if background != 0 and 0 in description.label_names:
        raise UserError(
            f"dataset.json names {background} background, and 0 {description.label_names[0]}, but 0 must be "
            "background: correct the names, or exchange the values in the label files."
        )
    found = sorted(({0} | set(values.cases) | set(description.label_names)) - {ignore_value})
    if found[0] < 0:
        raise UserError(
            f"Label files hold the value {found[0]}, but a class value must be at least 0: "
            + (
                "most voxels have it, so add a number to all values that makes it 0."
                if 2 * values.voxels[found[0]] > values.voxels.total()
                else f"to ignore these voxels, add --ignore_value {found[0]}."
            )
        )
    if found[-1] > LARGEST_VALUE:
        raise UserError(
            f"Label files hold the value {found[-1]}, beyond 2^53, where numbers are no longer compared exactly: give "
            "the structure another value."
        )
    if len(found) < 2:
        raise UserError("The label files contain only 0, the background: at least one other label value is needed.")
    if names is None:
        names = [known.get(v, f"structure {v}" if v else "background") for v in found]
    if len(names) != len(found):
        raise UserError(
            f"--label_names gives {len(names)} names, but there are {len(found)} classes, with the values "
            f"{', '.join(map(str, found))}."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"Two classes have the name {twice}: give each its own name, with --label_names or in its file."
        )
    code = next((name for name in names if name.startswith(("$", "@", "%")) or "#" in name), None)
    if code is not None:
        raise UserError(
            f"The label name {code!r} has a character that MONAI evaluates ($, @ or % at the start, # anywhere): give "
            "other names with --label_names."
        )
    return found, list(names)


def ct_channels(intensities: Sequence[Intensity], description: Description) -> tuple[list[bool], str]:
    """Decide for each channel whether it is CT, by the names in the description or else by the lowest values.

    Returns:
        The decision for each channel, and the reason.
    """
    named = [name for name in description.channel_names if name]
    if named:
        is_ct = [re.search(r"(?<![a-z])ct(?![a-z])", name.lower()) is not None for name in named]
        each = is_ct if len(is_ct) == len(intensities) else [all(is_ct)] * len(intensities)
        return each, f"dataset.json names {', '.join(named)}"
    lowest = [channel.minimum for channel in intensities]
    return [value < CT_MINIMUM for value in lowest], (
        f"lowest value {', '.join(f'{value:g}' for value in lowest)} (median over the volumes)"
    )


def modality_of(intensities: Sequence[Intensity], description: Description) -> tuple[str, str]:
    """Return `CT` if every channel is CT, `other` if none is, else `CT and other`; and the reason."""
    is_ct, reason = ct_channels(intensities, description)
    return "CT" if all(is_ct) else "CT and other" if any(is_ct) else "other", reason


def windows_of(intensities: Sequence[Intensity], is_ct: Sequence[bool]) -> list[tuple[float, float] | None]:
    """Return low and high foreground percentile of each CT channel, at least 1 apart; one window if all are CT."""
    if all(is_ct):
        return [_window(intensities)] * len(intensities)
    return [_window([channel]) if ct else None for channel, ct in zip(intensities, is_ct, strict=True)]


def _window(intensities: Sequence[Intensity]) -> tuple[float, float]:
    low = round(min(channel.low for channel in intensities), 1)
    return low, max(round(max(channel.high for channel in intensities), 1), low + 1)


def choose_patch(
    size: Sequence[int], divisor: int, most_voxels: int, fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """Choose the largest allowed patch, close to the median size of the volumes.

    Args:
        size: median size of the volumes in voxels.
        divisor: the sides of a patch must be multiples of this number.
        most_voxels: maximum number of voxels of a patch.
        fits: whether a patch fits into memory.
    """
    patch = [max(1, math.floor(n / divisor + 0.5)) * divisor for n in size]
    if max(patch) == divisor:  # norms reject a deepest layer with a single voxel
        patch[int(np.argmax(size))] = 2 * divisor
    while (math.prod(patch) > most_voxels or not fits(patch)) and max(patch) > 2 * divisor:
        longest = max(range(3), key=lambda axis: (patch[axis], size[axis]))
        patch[longest] -= divisor
    return patch


def default_network(settings: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Build the network of `configs/train.yaml`; also return the divisor of the sides of its patches."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    parser.update(dict(settings))
    return parser.get_parsed_content("network_def"), parser.get_parsed_content("size_divisor")


def choose_step(
    size: Sequence[int], settings: Mapping[str, Any], with_unlabelled: bool, machine: Machine
) -> tuple[list[int], tuple[int, int]]:
    """Choose patch size, and labelled and unlabelled patches per step: as large as preset and memory allow.

    Args:
        size: median size of the volumes in voxels.
        settings: keys of the configuration that the network depends on.
        with_unlabelled: whether there are unlabelled cases.
        machine: the machine to train on.
    """
    preset = PRESETS[machine.preset]
    network, divisor = default_network(settings)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())

    def fits(patch: Sequence[int], batch: tuple[int, int] = preset.batches[-1]) -> bool:
        need = PASSES * activation_bytes(network, (sum(batch), settings["in_channels"], *patch)) + 5 * weights
        return need <= STEP_SHARE * machine.step_memory

    patch = choose_patch(size, divisor, preset.patch_voxels, fits)
    batch = next((batch for batch in preset.batches if fits(patch, batch)), preset.batches[-1])
    return patch, batch if with_unlabelled else (batch[0], 0)


def make_plan(
    fingerprint: Fingerprint,
    description: Description,
    label_names: Sequence[str] | None,
    ignore_value: int | None,
    with_unlabelled: bool,
    machine: Machine,
) -> Plan:
    """Choose all settings.

    Args:
        fingerprint: measured properties of the volumes.
        description: names and values from `dataset.json`.
        label_names: the user's names, one per class; `None` for the names in the description.
        ignore_value: label value of voxels to ignore (`None`: no such value).
        with_unlabelled: whether there are unlabelled cases.
        machine: the machine to train on.

    Raises:
        UserError: for labels or names that do not give valid classes, see `classes_of`.
    """
    values, names = classes_of(fingerprint.labels, description, label_names, ignore_value, fingerprint.segments)
    grids, intensities = fingerprint.grids, fingerprint.intensities
    spacing, size = median_grid(grids)
    modality = modality_of(intensities, description)
    small = math.prod(size) <= SMALL_VOLUME
    network: dict[str, Any] = {
        "stem_stride": 1 if small else 2,
        "norm": "batch" if small else "group",
        "widths": PRESETS[machine.preset].widths[0 if small else 1],
    }
    settings = {"in_channels": grids[0].channels, "label_names": names, **network}
    patch, (batch_labelled, batch_unlabelled) = choose_step(size, settings, with_unlabelled, machine)
    return Plan(
        in_channels=grids[0].channels,
        label_values=values,
        label_names=names,
        ignore_value=ignore_value,
        spacing=spacing,
        size=size,
        windows=windows_of(intensities, ct_channels(intensities, description)[0]),
        modality=modality,
        preset=machine.preset,
        **network,
        roi_size=patch,
        batch_labelled=batch_labelled,
        batch_unlabelled=batch_unlabelled,
        max_steps=PRESETS[machine.preset].max_steps,
    )
