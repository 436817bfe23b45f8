# Sourced by the scripts beside it: makes the virtual environment .venv of this clone, and what they say and refuse.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
venv=$root/.venv

say() { printf '[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

# prepare_environment EXTRA: installs the package with that extra, editable, and puts the environment first in PATH.
# Does nothing slow while requirements.txt and pyproject.toml are what they were at the last call.
prepare_environment() {
  local extra=$1 stamp=$venv/.installed-$1 wanted
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    make_environment
  fi
  wanted=$("$venv/bin/python" - "$root" <<'PYTHON'
import hashlib, pathlib, sys

root = pathlib.Path(sys.argv[1])
files = [root / "requirements.txt", root / "pyproject.toml"]
print(hashlib.sha256(b"\0".join([bytes(root), *(file.read_bytes() for file in files)])).hexdigest())
PYTHON
  )
  if [[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
    say "installing sct-jax[$extra] into $venv (once; about a minute and 1 GB of packages)"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_environment
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "${root}[$extra]" ||
      fail "the packages could not be installed: see pip's message above; then run this again"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  PATH=$venv/bin:$PATH
  unset PYTHONHOME PYTHONPATH
  # Huge pages for what XLA works with in main memory: a step of a U-Net takes a fifth less time on a CPU.
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
}

make_environment() {
  local python=${PYTHON:-python3} version
  command -v "$python" >/dev/null || fail "no $python: install Python 3.11 or newer, or name one with PYTHON=..."
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2], int(sys.version_info >= (3, 11)))') ||
    fail "$python does not run: name another one with PYTHON=..."
  [[ ${version#* } == 1 ]] ||
    fail "$python is Python ${version% *}; 3.11 or newer is needed: name one with PYTHON=python3.12, say"
  say "making a virtual environment with Python ${version% *} in $venv"
  "$python" -m venv --clear "$venv" ||
    fail "$python -m venv failed: install the venv module (on Debian and Ubuntu: apt install python3-venv)"
}

# restart_until_done COMMAND: runs it until it exits with 0, 2 (a mistake that no restart mends) or 130 (Ctrl-C), or
# until this script was told to stop, which it hands on; returns the last status. Gives up after five quick failures in
# a row. SCT_RESTART_PAUSE: seconds before a restart (10); SCT_QUICK_FAILURE: what failed sooner was quick (60).
restart_until_done() {
  local child status quick=0 began stop='' stopped=''
  while :; do
    began=$SECONDS
    set -m  # its own process group: Ctrl-C comes to it once, from here
    "$@" &
    child=$!
    set +m
    trap 'stop=yes; kill -s TERM "$child" 2>/dev/null || true' TERM HUP
    trap 'stop=yes; kill -s INT "$child" 2>/dev/null || true' INT
    while :; do
      stop='' status=0
      wait "$child" || status=$?
      [[ $stop ]] || break
      stopped=yes
    done
    trap - TERM HUP INT
    [[ ! $stopped && $status != 0 && $status != 2 && $status != 130 ]] || return "$status"
    quick=$((SECONDS - began < ${SCT_QUICK_FAILURE:-60} ? quick + 1 : 0))
    if ((quick == 5)); then
      say "exit status $status, for the fifth time in a row soon after the start: giving up" >&2
      return "$status"
    fi
    say "exit status $status: restarting in ${SCT_RESTART_PAUSE:-10} s" >&2
    sleep "${SCT_RESTART_PAUSE:-10}"
  done
}

# show COMMAND: prints it as one line that a shell reads back.
show() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# help_of: the comment at the head of the running script.
help_of() { sed -nE '/^#SBATCH/d; 2,/^[^#]/s/^# ?//p' "$0"; }

# train_here EXTRA [--dry-run] ARGUMENTS: `sct-jax train ARGUMENTS` in the environment with EXTRA, restarted until it is
# done; or what would be done.
train_here() {
  local extra=$1 dry='' status=0
  shift
  [[ ${1:-} != --dry-run ]] || { dry=yes && shift; }
  (($#)) || fail "say what to train: --config FILE --workdir FOLDER (see .venv/bin/sct-jax train --help)"
  if [[ $dry ]]; then
    show "$venv/bin/python" -m pip install --editable "${root}[$extra]"
    show "$venv/bin/sct-jax" train "$@"
    echo "# and that again after any exit status but 0, 2 and 130"
    return
  fi
  prepare_environment "$extra"
  restart_until_done sct-jax train "$@" || status=$?
  exit "$status"
}
