#!/usr/bin/env bash
# Everything that must hold before a change lands: lint, types, rooms, tests. `--install-only` stops after installing.
#   bash scripts/test.sh [--install-only] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_topklm test
[ "${1:-}" = "--install-only" ] && exit 0

echo "== lint"
ruff format --check .
ruff check .
echo "== types"
mypy
echo "== rooms"
lint-imports
echo "== tests"
# One thread per process: the distributed tests start several, and torch would give each of them all cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Files go to as many processes as there are cores, whole, since their tests share what they train.
python -m pytest --numprocesses "${TEST_PROCESSES:-auto}" --dist loadfile "$@"
