# SPDX-License-Identifier: Apache-2.0
"""The floating-point format of a run: automatic choice, explicit settings and refusals."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import UserError
from scripts.training import precision
from scripts.training.precision import autocast_dtype


@pytest.fixture(params=[True, False], ids=["bf16 in hardware", "no bf16"])
def able(request, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: request.param)
    return request.param


def test_auto_is_bf16_on_a_cpu_that_supports_it(able):
    assert autocast_dtype("auto", "cpu", (64, 64, 48)) == (torch.bfloat16 if able else None)


def test_auto_on_this_cpu_is_what_its_flags_say():
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert autocast_dtype("auto", torch.device("cpu"), (64, 64, 48)) == (torch.bfloat16 if able else None)


def test_fp32_is_fp32_everywhere(able):
    assert autocast_dtype("fp32", "cpu", (64, 64, 48)) is None
    assert autocast_dtype("fp32", "cuda:0", (64, 64, 48)) is None


def test_bf16_is_refused_on_a_device_without_it(able):
    if able:
        assert autocast_dtype("bf16", "cpu", (64, 64, 48)) is torch.bfloat16
    else:
        with pytest.raises(UserError, match=r"cpu.*bf16.*--precision"):
            autocast_dtype("bf16", "cpu", (64, 64, 48))


@pytest.mark.parametrize(
    ("roi_size", "divisor", "safe"),
    [
        ((64, 64, 48), 16, True),  # 4 x 4 x 3 = 48 voxels at the coarsest
        ((32, 48, 32), 16, False),  # 2 x 3 x 2 = 12
        ((64, 64, 33), 16, True),  # 4 x 4 x ceil(33 / 16) = 48: the inferer pads
        ((64, 64, 32), 16, False),  # 4 x 4 x 2 = 32
        ((32, 48, 32), 8, True),  # 4 x 6 x 4 = 96
    ],
)
def test_auto_avoids_bf16_over_a_tiny_bottleneck_on_a_cpu(monkeypatch, roi_size, divisor, safe):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    assert autocast_dtype("auto", "cpu", roi_size, divisor) == (torch.bfloat16 if safe else None)
    assert autocast_dtype("bf16", "cpu", roi_size, divisor) is torch.bfloat16  # an explicit setting wins


def test_a_gpu_with_bf16_needs_no_large_bottleneck(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert autocast_dtype("auto", "cuda:0", (16, 16, 16)) is torch.bfloat16


def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch):
    # As on a V100 or T4: True only if emulation counts.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert autocast_dtype("auto", "cuda:0", (64, 64, 48)) is None
    with pytest.raises(UserError, match=r"cuda.*bf16"):
        autocast_dtype("bf16", "cuda:0", (64, 64, 48))


@pytest.mark.parametrize("setting", ["fp16", "AUTO", "", None])
def test_an_unknown_setting_is_refused(setting):
    with pytest.raises(UserError, match=f"precision.*'{setting}'"):
        autocast_dtype(setting, "cpu", (64, 64, 48))
