#!/usr/bin/env bash
# Lint and all tests; arguments go to pytest.
source "$(dirname "$0")/environment.sh"
"$PYTHON" -c 'import hypothesis, pytest, ruff' 2>/dev/null || "$PYTHON" -m pip install -q pytest hypothesis ruff
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
