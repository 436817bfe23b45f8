#!/usr/bin/env bash
# Trains one config on the TPU of this VM (one host); the arguments are those of `sct-jax train`:
#   launch/tpu_vm.sh [--dry-run] --config configs/cifar10_sct.py --workdir runs/cifar10_sct
# Restarts training when it is interrupted or fails; it resumes from the last checkpoint.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case ${1:-} in -h | --help) help_of && exit ;; esac
unset JAX_PLATFORMS
train_here tpu "$@"
