# SPDX-License-Identifier: Apache-2.0
"""The words of each command on a folder of the campaign, and what a child process is denied before it runs them."""

from __future__ import annotations

import ctypes
import resource

from scripts.benchmarks.bad_inputs.ground import ROOT, Ground
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, EXPORT, INFER, NEW, TRAIN

FILES = {
    TRAIN: ("train.yaml",),
    CHECK: ("train.yaml",),
    EVALUATE: ("train.yaml", "evaluate.yaml"),
    INFER: ("inference.yaml",),
    EXPORT: ("inference.yaml",),
}
LINUX_CAPABILITY_VERSION_3 = 0x20080522
DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2


def words_of(ground: Ground) -> list[str]:
    """Words behind `python -m`."""
    if ground.command == NEW:
        outputs = ("--output", str(ground.out), "--config", str(ground.out / "mine.yaml"))
        return ["scripts.cli.new_dataset", str(ground.data), "--name", "mine", *outputs, *ground.more]
    files = [str(ROOT / "configs" / name) for name in FILES[ground.command]] + ground.configs
    common = ["--config_file", str(files), "--bundle_root", str(ROOT)]
    if ground.command == EXPORT:
        model = ("--ckpt_file", str(ground.models / "model.pt"), "--filepath", str(ground.out / "model.ts"))
        return ["scripts.cli.export", "ts", *common, *model, *ground.more]
    run_id = ground.run_id or ("run" if ground.command == INFER else ground.command)
    folders = ["--output_dir", str(ground.out), "--ckpt_dir", str(ground.models)]
    if ground.command == INFER:
        folders += ["--dataset_dir", str(ground.images or ground.data / "images")]
    return ["monai.bundle", "run", run_id, *common, *folders, *ground.more]


def deny_passing_over_permissions() -> None:
    """Let this process, even if it is root's, be held by the permissions of files (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and the same for higher numbers
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for set_of in (0, 1):
        data[set_of] &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def deny_large_files(limit: int) -> None:
    """Let this process write no more than so many bytes into a file, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
