#!/bin/sh
# Runs the pack in at most ten minutes; PYTHON=/path/to/python chooses the one with JAX and PyTorch.
# results.json is then in the folder that this was called from. See README.md for the flags.
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m carried.run "$@"
