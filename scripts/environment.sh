# Sourced by the other scripts: makes .venv from requirements.txt when it is not there, and sets PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python
if [ ! -e .venv/.complete ]; then
    base=${COCLR_PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $base is older than Python 3.10; set COCLR_PYTHON to a newer one" >&2
        exit 2
    }
    echo "making .venv from requirements.txt (about 5 GB with CUDA, some minutes)"
    "$base" -m venv .venv || {
        echo "error: cannot make .venv; on Debian or Ubuntu: apt-get install python3-venv" >&2
        exit 2
    }
    "$PYTHON" -m pip install -q -r requirements.txt
    touch .venv/.complete
fi
