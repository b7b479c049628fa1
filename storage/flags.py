"""Values of flags that several commands have."""

from __future__ import annotations

import argparse


def positive_number(text: str) -> int:
    """For argparse's `type`: a whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number
