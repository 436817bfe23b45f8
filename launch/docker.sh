#!/usr/bin/env bash
# Builds the image of launch/Dockerfile; with arguments after -- it also trains in it:
#   launch/docker.sh [--dry-run] [--extra test|cuda12|cuda13|tpu] [--tag sct-jax:EXTRA] [--shared FOLDER] [--push]
#       [-- --config configs/cifar10_sct.py --workdir /shared/runs/sct]
# --shared is the folder that the container sees as /shared (default: shared in this clone). Training restarts when it
# is interrupted or fails, and resumes; so it does where this is run again, after a restart of the machine, say.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dry='' extra=test tag='' shared=$root/shared push=''
while (($#)); do
  case $1 in
    -h | --help) help_of && exit ;;
    --dry-run) dry=yes && shift && continue ;;
    --push) push=yes && shift && continue ;;
    --) shift && break ;;
  esac
  (($# > 1)) || fail "$1 needs a value"
  case $1 in
    --extra) extra=$2 ;;
    --tag) tag=$2 ;;
    --shared) shared=$2 ;;
    *) fail "unknown argument $1; what is for sct-jax train comes after --" ;;
  esac
  shift 2
done
user=(--user "$(id -u):$(id -g)" --env HOME=/tmp)  # whose folder it is
case $extra in
  test) devices=("${user[@]}") ;;
  cuda12 | cuda13) devices=("${user[@]}" --gpus all --shm-size 8g) ;;
  tpu) devices=(--user 0 --privileged --net host) ;;
  *) fail "--extra $extra: one of test (the CPU), cuda12, cuda13, tpu" ;;
esac
tag=${tag:-sct-jax:$extra}

run() { if [[ $dry ]]; then show "$@"; else "$@"; fi; }
[[ $dry ]] || command -v docker >/dev/null || fail "no docker: install it"
run docker build --file "$root/launch/Dockerfile" --build-arg "EXTRA=$extra" --tag "$tag" "$root"
[[ ! $push ]] || run docker push "$tag"
(($#)) || exit 0
run mkdir -p "$shared"
run docker run --detach --stop-timeout 120 "${devices[@]}" --volume "$shared:/shared" \
  --entrypoint launch/restart.sh "$tag" sct-jax train "$@"
