#!/usr/bin/env bash
# Style checks and the quick tests, with --all also the slow ones, in the environment of
# scripts/quickstart.sh, in two processes. Arguments go to pytest: `-n 0` for one process,
# `tests/moco` for a part.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements-dev.txt
ruff check .
ruff format --check .
mypy
python -m pytest -q -n 2 --maxschedchunk 1 --durations=10 "$@"
