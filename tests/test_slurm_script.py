# SPDX-License-Identifier: Apache-2.0
"""scripts/slurm_train.sh with stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "slurm_train.sh"


def words_of(folder: Path, *more: str, **variables: str) -> list[str]:
    """The arguments of `srun`, for two nodes that `scontrol` names.

    It prints them slowly, so that a reader that stops after the first one would break its pipe.
    """
    two_nodes = "printf 'node7\\n'; sleep 0.1; printf 'node9\\n'"
    for name, line in (("scontrol", two_nodes), ("srun", 'printf "%s\\n" "$@"')):
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7,9]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "31", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, **job, **variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([str(SCRIPT), *more], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_each_node_starts_a_process_per_gpu_and_all_meet_on_the_first_node(tmp_path) -> None:
    words = words_of(tmp_path, "--max_steps", "7")
    assert words[1:7] == [
        *("torchrun", "--nnodes=2", "--nproc_per_node=4", "--rdzv_id=31"),
        *("--rdzv_backend=c10d", "--rdzv_endpoint=node7:29500"),
    ]
    assert words[-4:] == ["--resume", "true", "--max_steps", "7"], "a requeued job resumes"
    assert "['configs/train.yaml','configs/multi_gpu_train.yaml']" in words


def test_files_processes_and_port_can_be_set(tmp_path) -> None:
    words = words_of(tmp_path, CONFIGS="['a.yaml']", PROCESSES="3", PORT="5")
    assert {"['a.yaml']", "--nproc_per_node=3", "--rdzv_endpoint=node7:5"} <= set(words)
