"""Imports TensorFlow without the messages that it prints at start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# TensorFlow prints these before Abseil's logging is set up, whatever TF_CPP_MIN_LOG_LEVEL says.
_GREETING = r"^(I0000 00:00:|WARNING: All log messages before absl::InitializeLog\(\))"


@contextlib.contextmanager
def no_greetings() -> Iterator[None]:
    """Keeps TensorFlow's first lines out of standard error while it is imported.

    All other lines get through, even those of a crash, because a separate process filters them.
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
        # A child process of TensorFlow may hold the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(timeout=5)
