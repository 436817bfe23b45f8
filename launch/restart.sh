#!/usr/bin/env bash
# Runs a command again until it is done, for containers and for machines where sct-jax is installed already:
#   launch/restart.sh [--dry-run] sct-jax train --config configs/cifar10_sct.py --workdir runs/cifar10_sct
# Not after the exit statuses 0, 2 (a mistake) and 130 (Ctrl-C), nor after five quick failures in a row.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case ${1:-} in
  '' | -h | --help) help_of && exit ;;
  --dry-run) shift && show "$@" && echo "# and that again after any exit status but 0, 2 and 130" && exit ;;
esac
status=0
restart_until_done "$@" || status=$?
exit "$status"
