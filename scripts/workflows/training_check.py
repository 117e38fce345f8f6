# SPDX-License-Identifier: Apache-2.0
"""What training looks at by itself before it loads data: headers, and whether the prepared volumes fit into memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import psutil

from scripts.data.cases import Case, CaseLists, images_of
from scripts.data.checks.case import CheckedHeaders, Expected
from scripts.data.checks.dataset import cases_with_roles, check_all_headers
from scripts.data.checks.finding import Severity
from scripts.data.checks.grid import number_of_channels
from scripts.data.prepared import prepared_bytes
from scripts.data.progress import progress_bar
from scripts.data.volumes import read_header
from scripts.errors import BundleError

logger = logging.getLogger("check")


def check_before_training(
    cases: CaseLists,
    in_channels: int,
    spacing: Sequence[float],
    roi_size: Sequence[int],
    cache_rate: float,
    with_unlabelled: bool = True,
) -> None:
    """The part of `check_data` that costs milliseconds a case; test cases are not looked at.

    Args:
        cases: of the datalist.
        in_channels: image channels.
        spacing: to which volumes are resampled, mm.
        roi_size: patch, voxels.
        cache_rate: fraction of the training cases that are kept in memory.
        with_unlabelled: whether the run uses its unlabelled cases.

    Raises:
        BundleError: for the first header that would harm training, with the number of others; or if the prepared
            volumes do not fit into the memory that is left.
    """
    roles = ("labelled", "unlabelled", "validation") if with_unlabelled else ("labelled", "validation")
    read = cases_with_roles(cases, *roles)
    checked = check_all_headers(read, Expected(in_channels, spacing, roi_size), progress_bar)
    findings = [finding for each in checked for finding in each.findings]
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        others = f" ({len(errors) - 1} more: `run check_data` lists them all)" if errors[1:] else ""
        raise BundleError(errors[0].sentence.rstrip(".") + others + ".")
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    if warnings:
        logger.warning(f"Warnings about headers of {len(read)} cases: {warnings}; `run check_data` lists them.")
    _check_cache(
        [(role, each) for (_, role), each in zip(read, checked, strict=True)], in_channels, roi_size, cache_rate
    )


def check_before_evaluation(cases: Sequence[Case], in_channels: int) -> None:
    """Each case must have as many image channels as the network takes.

    Args:
        cases: to evaluate.
        in_channels: image channels.

    Raises:
        BundleError: naming the first file that is not so, or that cannot be read.
    """
    for case in cases:
        for finding in number_of_channels([read_header(path) for path in images_of(case)], in_channels):
            raise BundleError(finding.sentence)


def _check_cache(
    cases: Sequence[tuple[str, CheckedHeaders]], channels: int, roi_size: Sequence[int], cache_rate: float
) -> None:
    """Compare the memory of the prepared volumes with what is left, and say both."""
    training = sum(
        prepared_bytes(each.shape, channels, role == "labelled", roi_size)
        for role, each in cases
        if role != "validation"
    )
    validation = sum(prepared_bytes(each.shape, channels, True) for role, each in cases if role == "validation")
    need, supply = cache_rate * training + validation, psutil.virtual_memory().available
    sizes = f"{_gib(need)} of memory, and {_gib(supply)} are left"
    if need > supply:
        fitting = max(0.0, math.floor(20 * (supply - validation) / training) / 20)
        raise BundleError(
            f"The prepared volumes of {len(cases)} cases take about {sizes}: give --cache_rate {fitting:g}, and the "
            "other training cases are read anew at each visit."
        )
    logger.info(f"Headers of {len(cases)} cases are sound; prepared, their volumes take about {sizes}.")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
