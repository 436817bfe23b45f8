#!/usr/bin/env bash
# From a clean clone to one-step samples of handwritten digits: environment, EDM pre-training, Stable Consistency
# Tuning, samples, measured quality, report. A few minutes on two CPU cores; a second run reuses what is there.
#   launch/demo.sh [--runs DIR]     results go to DIR (default: runs)
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=$root/runs
while (($#)); do
  case $1 in
    --runs=*) runs=${1#*=} && shift ;;
    --runs) (($# > 1)) || fail "--runs needs a folder" && runs=$2 && shift 2 ;;
    -h | --help) sed -n '2,4s/^# *//p' "${BASH_SOURCE[0]}" && exit ;;
    *) fail "unknown argument $1; the only option is --runs DIR" ;;
  esac
done
mkdir -p "$runs" || fail "cannot make the folder $runs"
runs=$(cd "$runs" >/dev/null && pwd)
cd "$root"
[[ $runs == "$root"/* ]] && runs=${runs#"$root"/}  # shorter to read
edm=$runs/digits_edm sct=$runs/digits_sct
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

# fresh OUTPUT RUN: whether OUTPUT is there and no older than the newest checkpoint of RUN.
fresh() {
  local checkpoint
  [[ -s $1 ]] || return 1
  for checkpoint in "$2"/checkpoints/*/; do
    [[ ! $checkpoint -nt $1 ]] || return 1
  done
}

sample() {
  local out=$sct/samples_$1step.png
  fresh "$out" "$sct" || sct-jax sample --checkpoint "$sct" --num 100 --steps "$1" --seed 0 --out "$out" >/dev/null
}

evaluate() {
  local out=$1/evaluation.json
  fresh "$out" "$1" ||
    sct-jax evaluate --checkpoint "$1" --steps "$2" --seeds 0,1,2 --num 1797 --out "$out" >/dev/null
}

prepare_environment test
say "training the diffusion model (configs/digits_edm.py) in $edm"
sct-jax train --config configs/digits_edm.py --workdir "$edm"
say "tuning it into a consistency model (configs/digits_sct.py) in $sct"
sct-jax train --config configs/digits_sct.py --workdir "$sct" "--config.init.checkpoint=$edm"
say "sampling in one and two steps"
sample 1
sample 2
say "measuring 3 x 1,797 samples of both models against the real digits"
evaluate "$edm" 18,1
evaluate "$sct" 1,2
say "writing the report"
sct-jax report "$edm" "$sct" --out "$runs/report.html" >/dev/null

say "done"
python launch/demo_summary.py "$edm" "$sct"
echo "Pictures: $sct/samples_1step.png, $sct/samples_2step.png"
echo "Report:   $runs/report.html"
