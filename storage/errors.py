"""Formats error messages."""

from __future__ import annotations

from storage.addresses import redacted


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks and secrets, or its class if it has none."""
    # A store may redirect to a signed address, which its library then quotes.
    return redacted(" ".join(str(error).split())) or type(error).__name__
