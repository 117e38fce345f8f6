#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Training on several nodes of a SLURM cluster: one torchrun per node starts a process for each of its GPUs.
#
#   sbatch --nodes=2 --gpus-per-node=4 scripts/slurm_train.sh --max_steps 15000
#
# Submit it from the bundle's folder, which all nodes must be able to read. The arguments are passed on to the run. The
# environment variable CONFIGS sets the config files, and PROCESSES the processes per node (needed on nodes without GPUs).
# A requeued job resumes from its newest checkpoint.

#SBATCH --job-name=semi_supervised
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.log

set -euo pipefail

: "${CONFIGS:=['configs/train.yaml','configs/multi_gpu_train.yaml']}"
: "${PROCESSES:=${SLURM_GPUS_ON_NODE:-1}}"
: "${PORT:=29500}"

# All nodes connect to the first one. Read all names rather than use `head -n 1`, which would close the pipe while
# scontrol still writes, so that pipefail would end the job.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first_node=${nodes[0]:?scontrol names no node of this job}

srun --kill-on-bad-exit=1 \
  torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$PROCESSES" \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first_node:$PORT" \
  -m monai.bundle run training --config_file "$CONFIGS" --resume true "$@"
