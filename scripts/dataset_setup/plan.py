# SPDX-License-Identifier: Apache-2.0
"""From what volumes are like to the settings they train with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.data.sizes import resampled_bytes, resampled_shape
from scripts.dataset_setup.fingerprint import Fingerprint, Grid, Intensity, LabelValues
from scripts.dataset_setup.layouts import Description
from scripts.errors import UserError
from scripts.training.limits import activation_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CT_MINIMUM = -200  # below what MR or PET hold; air is -1000 HU
CPU_PATCH_VOXELS = 64**3  # larger patches fit into memory, but a step of them takes a CPU many seconds
GPU_PATCH_VOXELS = 128**3
STEP_SHARE = 0.5  # of the memory, for a training step
CACHE_SHARE = 0.5  # of the machine's memory, for prepared volumes
PASSES = 3  # a layer's output, its gradient, and room for the teacher's pass and the convolutions' workspace


@dataclass(frozen=True)
class Machine:
    """What a run may use.

    Attributes:
        memory: bytes of the machine, for volumes.
        step_memory: bytes of the device that trains.
        gpu: whether that is a GPU.
    """

    memory: int
    step_memory: int
    gpu: bool

    @classmethod
    def here(cls) -> Machine:
        """This machine. Its whole memory counts, not what is free just now: the same folder gives the same file."""
        memory = psutil.virtual_memory().total
        if torch.cuda.is_available():
            return cls(memory, torch.cuda.get_device_properties(0).total_memory, True)
        return cls(memory, memory, False)


@dataclass(frozen=True)
class Plan:
    """Settings of a dataset's YAML.

    Attributes:
        in_channels: image channels.
        label_values: value in the label files of each class, background first.
        label_names: of each class.
        ignore_value: value of voxels that count for nothing.
        spacing: mm, axes in the order of RAS.
        size: median voxels of a volume at that spacing.
        window: lowest and highest intensity that matter, for CT; `None` for z-scores.
        modality: `CT` or `other`, and what says so.
        roi_size: patch, voxels.
        batch_labelled: patches a step.
        batch_unlabelled: patches a step.
        cache_rate: fraction of the prepared volumes that memory has room for.
    """

    in_channels: int
    label_values: list[int]
    label_names: list[str]
    ignore_value: int | None
    spacing: list[float]
    size: list[int]
    window: tuple[float, float] | None
    modality: tuple[str, str]
    roi_size: list[int]
    batch_labelled: int
    batch_unlabelled: int
    cache_rate: float


def median_grid(grids: Sequence[Grid]) -> tuple[list[float], list[int]]:
    """Median spacing (mm), and the median size (voxels) that volumes have at it."""
    spacings = np.array([grid.spacing for grid in grids])
    spacing = np.median(spacings, axis=0).round(4)
    sizes = np.array([grid.shape for grid in grids]) * spacings / spacing
    return [float(s) for s in spacing], [max(1, round(float(n))) for n in np.median(sizes, axis=0)]


def classes_of(
    values: LabelValues, description: Description, names: Sequence[str] | None, ignore_value: int | None
) -> tuple[list[int], list[str]]:
    """Value and name of each class: what label files hold and what a dataset.json declares, and 0 as background.

    Args:
        values: counted in label files.
        description: may name values.
        names: the user's, one a class.
        ignore_value: value that is no class.

    Raises:
        UserError: for names that do not fit, a single class, or a negative value.
    """
    found = sorted(({0} | set(values.cases) | set(description.label_names)) - {ignore_value})
    if found[0] < 0:
        raise UserError(
            f"Label files hold the value {found[0]}, and a class must be 0 or more: if it means voxels to ignore, say "
            f"--ignore_value {found[0]}."
        )
    if len(found) < 2:
        raise UserError("The labels hold nothing but 0, the background: at least one structure is needed.")
    if names is None:
        names = [description.label_names.get(v, f"structure {v}" if v else "background") for v in found]
    if len(names) != len(found):
        raise UserError(
            f"--label_names gives {len(names)} names, but there are {len(found)} classes, of the values "
            f"{', '.join(map(str, found))}."
        )
    code = next((name for name in names if name.startswith(("$", "@", "%")) or "#" in name), None)
    if code is not None:
        raise UserError(
            f"The label name {code!r} has a sign that MONAI evaluates ($, @ or % in front, # anywhere): give others by "
            "--label_names."
        )
    return found, list(names)


def modality_of(intensities: Sequence[Intensity], description: Description) -> tuple[str, str]:
    """`CT` if every channel is, else `other`; and what says so."""
    named = [name for name in description.channel_names if name]
    if named:
        is_ct = [re.search(r"(?<![a-z])ct(?![a-z])", name.lower()) is not None for name in named]
        return "CT" if all(is_ct) else "other", f"dataset.json names {', '.join(named)}"
    lowest = max(channel.minimum for channel in intensities)
    if lowest < CT_MINIMUM:
        return "CT", f"volumes go down to {lowest:g} (median)"
    return "other", f"volumes go down to {lowest:g} only (median)"


def window_of(intensities: Sequence[Intensity]) -> tuple[float, float]:
    """Lowest and highest foreground percentile over channels, at least 1 apart."""
    low = round(min(channel.low for channel in intensities), 1)
    return low, max(round(max(channel.high for channel in intensities), 1), low + 1)


def choose_patch(
    size: Sequence[int], divisor: int, most_voxels: int, fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The patch nearest to a volume's size that is small enough.

    Args:
        size: voxels of a median volume.
        divisor: sides are multiples of it.
        most_voxels: no patch has more.
        fits: whether a patch fits into memory.
    """
    patch = [max(1, math.floor(n / divisor + 0.5)) * divisor for n in size]
    if max(patch) == divisor:  # the deepest layer of the network would hold a single voxel, which no norm accepts
        patch[int(np.argmax(size))] = 2 * divisor
    while (math.prod(patch) > most_voxels or not fits(patch)) and max(patch) > 2 * divisor:
        longest = max(range(3), key=lambda axis: (patch[axis], size[axis]))
        patch[longest] -= divisor
    return patch


def default_network(in_channels: int, label_names: Sequence[str]) -> tuple[nn.Module, int]:
    """The network of `configs/train.yaml` for such images, and what its patches' sides must be multiples of."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    parser["in_channels"], parser["label_names"] = in_channels, list(label_names)
    return parser.get_parsed_content("network_def"), parser.get_parsed_content("size_divisor")


def choose_step(
    size: Sequence[int], channels: int, names: Sequence[str], with_unlabelled: bool, machine: Machine
) -> tuple[list[int], int]:
    """Patch, and patches a step of each stream: 2, and 4 where a GPU has room for them."""
    network, divisor = default_network(channels, names)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    patches = 4 if with_unlabelled else 1  # a labelled one, an unlabelled one, and their two mixtures (CopyPasteTerm)

    def fits(patch: Sequence[int], batch: int = 2) -> bool:
        need = PASSES * activation_bytes(network, (patches * batch, channels, *patch)) + 5 * weights
        return need <= STEP_SHARE * machine.step_memory

    patch = choose_patch(size, divisor, GPU_PATCH_VOXELS if machine.gpu else CPU_PATCH_VOXELS, fits)
    return patch, 4 if machine.gpu and fits(patch, 4) else 2


def cache_rate(grids: Sequence[Grid], spacing: Sequence[float], memory: int) -> float:
    """Fraction of prepared volumes (float32 images, uint8 labels) that the cache may hold, in steps of 0.05."""
    need = sum(
        resampled_bytes(resampled_shape(grid.shape, grid.spacing, spacing), grid.channels, with_label=True)
        for grid in grids
    )
    return 1.0 if need <= CACHE_SHARE * memory else math.floor(20 * CACHE_SHARE * memory / need) / 20


def make_plan(
    fingerprint: Fingerprint,
    description: Description,
    label_names: Sequence[str] | None,
    ignore_value: int | None,
    with_unlabelled: bool,
    machine: Machine,
) -> Plan:
    """Choose every setting; each is chosen by a function above.

    Args:
        fingerprint: what the volumes are like.
        description: what the dataset says about itself.
        label_names: the user's name for each class; `None`: those of the description.
        ignore_value: label value of voxels that are ignored; `None`: there is none.
        with_unlabelled: whether there are unlabelled cases.
        machine: that is to train.

    Raises:
        UserError: for labels from which no classes can be made.
    """
    values, names = classes_of(fingerprint.labels, description, label_names, ignore_value)
    grids, intensities = fingerprint.grids, fingerprint.intensities
    spacing, size = median_grid(grids)
    modality = modality_of(intensities, description)
    patch, batch = choose_step(size, grids[0].channels, names, with_unlabelled, machine)
    return Plan(
        in_channels=grids[0].channels,
        label_values=values,
        label_names=names,
        ignore_value=ignore_value,
        spacing=spacing,
        size=size,
        window=window_of(intensities) if modality[0] == "CT" else None,
        modality=modality,
        roi_size=patch,
        batch_labelled=batch,
        batch_unlabelled=batch if with_unlabelled else 0,
        cache_rate=cache_rate(grids, spacing, machine.memory),
    )
