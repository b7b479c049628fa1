"""What is said of errors."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
