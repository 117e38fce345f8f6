# SPDX-License-Identifier: Apache-2.0
"""Checks before the first training step: device memory and image headers."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence

import psutil
import torch
from torch import nn

from scripts.data.checks.case import check_all_headers
from scripts.data.checks.finding import Severity
from scripts.data.checks.grid import number_of_channels
from scripts.data.checks.labels import values_of_label
from scripts.data.corrected_labels import with_foreign_labels
from scripts.data.labels import tally
from scripts.data.spec import Case, CaseLists, DatasetSpec, cases_with_roles, images_of
from scripts.errors import UserError
from scripts.images.read import read_header
from scripts.progress import progress_bar
from scripts.training.inferer import FeatureInferer, stages

logger = logging.getLogger("check")


def activation_bytes(
    network: nn.Module,
    shape: Sequence[int],
    activation_checkpointing: bool = False,
    dtype: torch.dtype | None = None,
) -> int:
    """Count the bytes of the layer outputs of one forward pass, on meta tensors. In-place layers have no own output.

    Args:
        network: image to logits.
        shape: input `(B, C, D, H, W)`.
        activation_checkpointing: count the outputs of the network's `stages` only.
        dtype: autocast's type; `None` for float32.
    """
    ghost = copy.deepcopy(network).to("meta")
    bytes_per_value = (dtype or torch.float32).itemsize
    total = 0

    def count(module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor) and not getattr(module, "inplace", False):
            total += output.numel() * bytes_per_value

    layers = [module for module in ghost.modules() if not list(module.children())]
    for module in stages(ghost) if activation_checkpointing else layers:
        module.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    return total


def check_memory(
    network: nn.Module,
    in_channels: int,
    roi_size: Sequence[int],
    batch_size: int,
    divisor: int,
    activation_checkpointing: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Compare the memory that a training step needs with the free memory of the network's device, before loading data.

    The estimate is a lower bound: the outputs of the layers, weights, gradients, two moments of Adam, and the teacher.

    Args:
        network: the network to train.
        in_channels: image channels.
        roi_size: patch in voxels.
        batch_size: patches per pass, both streams together.
        divisor: the sides of a patch are padded to multiples of this number.
        activation_checkpointing: see `FeatureInferer`.
        dtype: autocast's type; `None` for float32.

    Raises:
        UserError: if a step does not fit (the message gives both amounts and says what to lower), or if the network
            does not accept patches of this size.
    """
    shape = (batch_size, in_channels, *(math.ceil(side / divisor) * divisor for side in roi_size))
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    try:
        need = activation_bytes(network, shape, activation_checkpointing, dtype) + 5 * weights
    except ValueError as error:  # torch cannot normalise the single value that the deepest layer may hold
        raise UserError(
            f"The network cannot train on patches of {'x'.join(map(str, roi_size))} voxels (roi_size): "
            f"{str(error).splitlines()[0].rstrip('.')}. Raise --roi_size."
        ) from error
    device = next(network.parameters()).device
    supply = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need > supply:
        raise UserError(
            f"A pass of {batch_size} patches of {'x'.join(map(str, roi_size))} voxels needs at least "
            f"{need / 2**30:.1f} GiB, but {device} has {supply / 2**30:.1f} GiB left. Lower --roi_size, or "
            "--batch_labelled and --batch_unlabelled, or raise --accumulation_steps."
        )


def check_before_training(
    network: nn.Module,
    dataset: DatasetSpec,
    cases: CaseLists,
    batch_labelled: int,
    batch_unlabelled: int,
    inferer: FeatureInferer,
    accumulation_steps: int = 1,
    self_training: bool = True,
) -> None:
    """Check memory and headers before any volume is loaded; it takes milliseconds per case. Test cases are not read.

    The arguments are the parts of a trainer and not the trainer itself, because building the trainer loads volumes into
    the cache.

    Args:
        network: the network to train, on the device of the run.
        dataset: the dataset block.
        cases: the cases of its datalist.
        batch_labelled: labelled patches per step.
        batch_unlabelled: unlabelled patches per step; with 0, unlabelled cases are not used.
        inferer: runs the network on a batch.
        accumulation_steps: number of parts of a step; memory is needed for the passes of one part at a time.
        self_training: whether the run does self-training; only then may `foreign_labels` be given.

    Raises:
        UserError: if a step does not fit the device's memory; if a header, or a value in another program's label, would
            harm training (the message describes the first one and counts the others); for `foreign_labels` without
            self-training.
    """
    if dataset.foreign_labels is not None and not self_training:
        raise UserError(
            "foreign_labels are for self-training on unlabelled cases, which this run does not have (no unlabelled "
            "case, batch_unlabelled 0, or a method with restart 1): give unlabelled cases and choose the default "
            "method or self_training, or leave foreign_labels out."
        )
    batch = batch_labelled + (batch_unlabelled if cases.unlabelled else 0)
    part = math.ceil(batch / accumulation_steps)
    check_memory(
        *(network, dataset.in_channels, dataset.roi_size, part),
        *(inferer.divisor, inferer.activation_checkpointing, inferer.dtype),
    )
    check_headers_before_training(dataset, cases, batch_unlabelled > 0)


def check_headers_before_training(dataset: DatasetSpec, cases: CaseLists, with_unlabelled: bool = True) -> None:
    """The part of `check_before_training` that reads files.

    Raises:
        UserError: see `check_before_training`.
    """
    roles = ("labelled", "unlabelled", "validation") if with_unlabelled else ("labelled", "validation")
    cases, findings = with_foreign_labels(cases, dataset.foreign_labels_dir)
    read = cases_with_roles(cases, *roles)
    checked = check_all_headers(read, dataset, progress_bar)
    findings += [finding for each in checked for finding in each.findings]
    for each in checked:
        if each.role == "unlabelled" and each.label is not None:  # bad values fail in mid-training
            findings += values_of_label(each.label.header.path, tally(each.label.voxels()), dataset)
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        others = f" ({len(errors) - 1} more: `run check_data` lists them all)" if errors[1:] else ""
        raise UserError(errors[0].sentence.rstrip(".") + others + ".")
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    if warnings:
        logger.warning(f"Warnings about headers of {len(read)} cases: {warnings}; `run check_data` lists them.")
    logger.info(f"Headers of {len(read)} cases are valid.")


def check_before_evaluation(cases: Sequence[Case], in_channels: int) -> None:
    """Check that every case has as many image channels as the network takes.

    Args:
        cases: the cases to evaluate.
        in_channels: number of image channels that the network takes.

    Raises:
        UserError: names the first file that has a different number of channels or cannot be read.
    """
    for case in cases:
        for finding in number_of_channels([read_header(path) for path in images_of(case)], in_channels):
            raise UserError(finding.sentence)
