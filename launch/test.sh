#!/usr/bin/env bash
# Makes the environment and checks everything: lint, format, tests. Arguments go to pytest:
#   launch/test.sh                      all but the slow tests
#   launch/test.sh -m slow              the slow ones
#   launch/test.sh tests/data -k order  some
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

prepare_environment test
ruff check --quiet
ruff format --check || fail "the files above are not formatted: run .venv/bin/ruff format"

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
cores=$(python -c 'import os; print(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))')
exec python -m pytest -m "not slow" --numprocesses "$cores" --dist loadfile "$@"
