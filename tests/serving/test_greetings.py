"""What gets through while TensorFlow is imported; each in a process with an fd 2 of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GREETINGS = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795731454.194161   30529 port.cc:153] oneDNN custom operations are on.\n"
)


def said(body: str) -> tuple[int, str]:
    script = f"""
import os, sys
from storage.greetings import no_greetings
try:
    with no_greetings():
        os.write(2, {GREETINGS!r}.encode() + b"E0000 00:00:1 real trouble\\n")
        {body}
finally:
    print("after", {GREETINGS.splitlines()[0]!r}, file=sys.stderr)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_only_greetings_are_left_out_and_only_meanwhile() -> None:
    code, text = said("pass")
    assert code == 0
    assert text == f"E0000 00:00:1 real trouble\nafter {GREETINGS.splitlines()[0]}\n"


@pytest.mark.parametrize(("body", "status"), [("os.abort()", -6), ("raise ImportError('x')", 1)])
def test_nothing_of_a_crash_is_lost(body: str, status: int) -> None:
    code, text = said(body)
    assert code == status
    assert text.startswith("E0000 00:00:1 real trouble\n")
    assert ("ImportError: x" in text) == (status == 1)
