#!/usr/bin/env bash
# Lint and all tests; arguments go to pytest.
source "$(dirname "$0")/environment.sh"
"$PYTHON" -c 'import hypothesis, ruff, xdist' 2>/dev/null ||
    "$PYTHON" -m pip install -q hypothesis pytest pytest-xdist ruff
# OpenCV with its own TV-L1, which ours is compared with: in a folder of its own, as both packages hold cv2
[ -d .venv/contrib ] || "$PYTHON" -m pip install -q --no-deps --target .venv/contrib opencv-contrib-python-headless
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
