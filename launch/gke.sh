#!/usr/bin/env bash
# Trains one config on a slice of TPUs in Google Kubernetes Engine; what follows -- is for `sct-jax train`:
#   launch/gke.sh [--dry-run] --image IMAGE --claim CLAIM [--name sct] [--accelerator tpu-v5-lite-podslice]
#       [--topology 4x4] [--chips 4] -- --config configs/cifar10_sct.py --workdir /shared/runs/sct
# Fills in launch/gke.yaml and applies it with kubectl; --dry-run prints it. --image was built by launch/docker.sh;
# --claim names a volume that many pods may write, which they see at /shared; --chips is how many a host has.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dry='' image='' claim='' name=sct accelerator=tpu-v5-lite-podslice topology=4x4 chips=4
while (($#)); do
  case $1 in
    -h | --help) help_of && exit ;;
    --dry-run) dry=yes && shift && continue ;;
    --) shift && break ;;
  esac
  (($# > 1)) || fail "$1 needs a value"
  [[ $2 =~ ^[A-Za-z0-9./:@_-]+$ ]] || fail "$1 $2: only letters, digits and . / : @ _ - can be used here"
  case $1 in
    --image) image=$2 ;;
    --claim) claim=$2 ;;
    --name) name=$2 ;;
    --accelerator) accelerator=$2 ;;
    --topology) topology=$2 ;;
    --chips) chips=$2 ;;
    *) fail "unknown argument $1; what is for sct-jax train comes after --" ;;
  esac
  shift 2
done
[[ $image && $claim ]] || fail "say what to run and where to save: --image IMAGE --claim CLAIM"
(($#)) || fail "say what to train: -- --config FILE --workdir /shared/FOLDER"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology $topology: write it as 4x4 or 2x2x4"
[[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips $chips: how many chips a host has, such as 4"
total=$((${topology//x/*}))
((total % chips == 0)) || fail "--topology $topology has $total chips, which are no whole hosts of $chips"

# quoted TEXT: as a JSON string, which is one of YAML too.
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

arguments=$(quoted train)
for argument in "$@"; do arguments+=", $(quoted "$argument")"; done
yaml=$(<"$root/launch/gke.yaml")
fill() { yaml=${yaml//"@$1@"/"$2"}; }
fill NAME "$name"
fill IMAGE "$image"
fill CLAIM "$claim"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill CHIPS "$chips"
fill HOSTS $((total / chips))
fill ARGUMENTS "[$arguments]"

if [[ $dry ]]; then
  printf '%s\n' "$yaml"
  exit
fi
command -v kubectl >/dev/null || fail "no kubectl: install it, and point it at the cluster"
kubectl apply -f - <<<"$yaml"
echo "see it with: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
