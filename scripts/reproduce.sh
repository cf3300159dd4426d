#!/usr/bin/env bash
# The paper's recipe, from databases to the table: bash scripts/reproduce.sh DATASET [NPROC]; --help says the rest.
source "$(dirname "$0")/environment.sh"
exec "$PYTHON" -m scripts.reproduce "$@"
