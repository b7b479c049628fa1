"""What is said of errors."""

from __future__ import annotations

from storage.addresses import redacted


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and secrets, or its class where it has none."""
    # A store may have led on to an address that is signed, of which its library then speaks.
    return redacted(" ".join(str(error).split())) or type(error).__name__
