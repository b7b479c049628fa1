"""How every benchmark runs what it measures: each measurement in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TENSORFLOW_ENVIRONMENT = {
    "TF_USE_LEGACY_KERAS": "0",
    # On by default on some processors; here it is on for all ways.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def measured(
    module: str,
    *flags: str,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a module from the root of the repository; returns the JSON of its last line.

    Args:
        module: The module, such as `benchmarks.train.ours`.
        flags: Its command line.
        python: An interpreter that has what the module imports.
        environment: Variables in addition to those of this process.

    Raises:
        subprocess.CalledProcessError: The module failed.
    """
    process = subprocess.run(
        [python, "-m", module, *flags],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result
