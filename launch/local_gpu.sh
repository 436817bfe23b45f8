#!/usr/bin/env bash
# Trains one config on the GPUs of this machine; the arguments are those of `sct-jax train`:
#   launch/local_gpu.sh [--dry-run] --config configs/cifar10_sct.py --workdir runs/cifar10_sct
# Makes the environment with the JAX that fits the driver's CUDA version. CUDA_VISIBLE_DEVICES picks GPUs.
# Restarts training when it is interrupted or fails; it resumes from the last checkpoint.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cuda_extra() {
  local version
  command -v nvidia-smi >/dev/null || fail "no nvidia-smi: install NVIDIA's driver, or train on the CPU with sct-jax train"
  version=$(nvidia-smi | sed -nE 's/.*CUDA( UMD)? Version: *([0-9]+)\..*/\2/p' | head -n 1) || true
  [[ $version =~ ^[0-9]+$ ]] || fail "nvidia-smi names no CUDA version: does the driver work? Try nvidia-smi"
  ((version >= 12)) || fail "the driver's CUDA version is $version; 12 or newer is needed: update the driver"
  if ((version >= 13)); then echo cuda13; else echo cuda12; fi
}

case ${1:-} in -h | --help) help_of && exit ;; esac
if [[ ${1:-} == --dry-run ]] && ! command -v nvidia-smi >/dev/null; then
  echo "# no nvidia-smi here: as with a driver of CUDA 13"
  extra=cuda13
else
  extra=$(cuda_extra)
fi
unset JAX_PLATFORMS
train_here "$extra" "$@"
