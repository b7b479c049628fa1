#!/bin/sh
# Runs the pack in at most ten minutes; PYTHON=/path/to/python chooses a Python with JAX and PyTorch.
# Leaves results.json in the folder that this is called from. See README.md for the flags.
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m carried.run "$@"
