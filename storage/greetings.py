"""TensorFlow imported without the lines that it greets with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# What TensorFlow says of itself before Abseil's logging is set up, TF_CPP_MIN_LOG_LEVEL or not.
_GREETING = r"^(I0000 00:00:|WARNING: All log messages before absl::InitializeLog\(\))"


@contextlib.contextmanager
def no_greetings() -> Iterator[None]:
    """Leaves TensorFlow's first lines out of standard error while it is imported.

    Every other line gets through, also that of a crash: a process of its own reads them.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    standard_error = os.dup(2)
    command = ["grep", "--line-buffered", "-vE", _GREETING]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=standard_error)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        # A child process of TensorFlow's may hold the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(timeout=5)
