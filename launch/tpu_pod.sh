#!/usr/bin/env bash
# Trains one config on all hosts of a Cloud TPU slice, from any machine with gcloud; what follows -- is for `sct-jax train`:
#   launch/tpu_pod.sh [--dry-run] --name sct --zone us-west4-a [--project P] [--setup COMMAND]
#       [--type v5litepod-64 [--version v2-alpha-tpuv5-lite] [--spot]] -- --config FILE --workdir FOLDER
# Copies the last commit of this clone to every host, installs it there and trains. --workdir must be a folder that all
# hosts share; --setup is run on each of them first, to mount it, say.
# With --type the slice is asked for as a queued resource named as --name, and asked for again after each preemption;
# without it, it must be there. Training is restarted by its hosts; it resumes from the last checkpoint.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

name='' type='' version='' setup=':' dry='' place=() tier=()
while (($#)); do
  case $1 in
    -h | --help) help_of && exit ;;
    --dry-run) dry=yes && shift && continue ;;
    --spot) tier=(--spot) && shift && continue ;;
    --) shift && break ;;
  esac
  (($# > 1)) || fail "$1 needs a value"
  case $1 in
    --name) name=$2 ;;
    --zone | --project) place+=("$1=$2") ;;
    --type) type=$2 ;;
    --version) version=$2 ;;
    --setup) setup=$2 ;;
    *) fail "unknown argument $1; what is for sct-jax train comes after --" ;;
  esac
  shift 2
done
[[ $name && ${place[*]-} == *--zone=* ]] || fail "say which TPU: --name NAME --zone ZONE"
(($#)) || fail "say what to train: -- --config FILE --workdir FOLDER"
if [[ $type && ! $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--type $type: say which software its hosts run, with --version (see gcloud compute tpus versions list)" ;;
  esac
fi

run() { if [[ $dry ]]; then show "$@"; else "$@"; fi; }
queue() { run gcloud compute tpus queued-resources "$@" "${place[@]}" --quiet; }
hosts() { run gcloud compute tpus tpu-vm "$@" "${place[@]}" --worker=all --quiet; }

# state: that of the queued resource, or MISSING.
state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>/dev/null ||
    echo MISSING
}

create() {
  queue create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    ${tier[@]+"${tier[@]}"}
}

# have_slice: asks for the slice where it is not there, and waits for it.
have_slice() {
  local now
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      MISSING) say "asking for $type" && create ;;
      SUSPENDED) say "$name was preempted: giving it back, to ask for it again" && queue delete "$name" --force ;;
      FAILED) fail "the request for $type failed: see gcloud compute tpus queued-resources describe $name, and delete it" ;;
      *) say "$name is $now: waiting" ;;
    esac
    sleep "${SCT_POLL:-30}"
  done
}

archive=$(mktemp)
trap 'rm -f "$archive" "$archive.log"' EXIT
printf -v arguments ' %q' "$@"
# The lock outlives a broken connection for as long as the old training does.
remote="set -e; $setup; mkdir -p ~/sct-jax; tar -xzf ~/sct-jax.tar.gz -C ~/sct-jax; export SCT_COORDINATOR=auto
status=0; flock ~/sct-jax.lock ~/sct-jax/launch/tpu_vm.sh$arguments || status=\$?
echo \"host ended with status \$status\"; exit \$status"

train() {
  hosts scp "$archive" "$name:sct-jax.tar.gz" || return
  if [[ $dry ]]; then
    hosts ssh "$name" --command="$remote"
  else
    hosts ssh "$name" --command="$remote" 2>&1 | tee "$archive.log"
  fi
}

if [[ $dry ]]; then
  [[ ! $type ]] || create
  show git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  train
  if [[ $type ]]; then
    echo "# and after a preemption this, and all of the above again:"
    queue delete "$name" --force
  fi
  exit
fi
command -v gcloud >/dev/null || fail "no gcloud: install the Google Cloud CLI"
git -C "$root" archive --format=tar.gz --output="$archive" HEAD || fail "$root is no git clone: what is copied is its last commit"
for ((failures = 0; failures < 100; failures++)); do
  [[ ! $type ]] || have_slice
  : >"$archive.log"
  if train; then
    say "done" && exit
  fi
  ! grep -qE 'host ended with status (2|130)$' "$archive.log" || fail "training stopped for good: see above"
  say "training was interrupted: going on in ${SCT_POLL:-30} s"
  sleep "${SCT_POLL:-30}"
done
fail "interrupted $failures times: giving up"
