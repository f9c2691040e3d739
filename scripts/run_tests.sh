#!/usr/bin/env bash
# Style and tests, in the environment of scripts/quickstart.sh. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements-dev.txt
ruff check .
ruff format --check .
mypy
python -m pytest -q --durations=5 "$@"
