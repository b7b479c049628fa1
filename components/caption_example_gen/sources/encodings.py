"""Decodes text files in UTF-8 or UTF-16, with or without byte order mark, and reports others."""

from __future__ import annotations

import codecs
import posixpath
import shlex

UTF8_BOM = codecs.BOM_UTF8

_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def utf16_of(content: bytes) -> str:
    """The encoding of a text that begins like UTF-16, for `bytes.decode`; else "".

    Without a byte order mark, a zero byte beside the first character shows it.
    """
    first = content[:2]
    if first in _UTF16_BOMS:
        return "utf-16"
    if len(first) < 2 or all(first) or not any(first):
        return ""
    return "utf-16-be" if first[0] == 0 else "utf-16-le"


def decoded(content: bytes, errors: str = "strict") -> str:
    """The text of a whole file, without its byte order mark.

    Args:
        content: The file's bytes.
        errors: How bytes that are not UTF-8 are handled; see `bytes.decode`.

    Raises:
        UnicodeDecodeError: The content is neither UTF-8 nor UTF-16.
    """
    encoding = utf16_of(content)
    if encoding:
        return content.decode(encoding)
    return content.removeprefix(UTF8_BOM).decode("utf-8", errors)


def utf8(content: bytes) -> bytes:
    """The content of a text file as UTF-8 without byte order mark; unchanged if it is neither."""
    encoding = utf16_of(content)
    if not encoding:
        return content.removeprefix(UTF8_BOM)
    try:
        return content.decode(encoding).encode()
    except UnicodeError:
        return content


def complaint_about(content: bytes, path: str) -> str:
    """What is wrong with the encoding of a whole file, for users; "" if it is valid.

    Args:
        content: The file's bytes.
        path: The file's path.
    """
    # Most captions are ASCII, and this check is much faster than decoding them.
    if content.isascii():
        return ""
    try:
        decoded(content)
    except UnicodeDecodeError as error:
        # The position in the file, which may start with a byte order mark.
        start = error.start + len(content) - len(error.object)
        line = content.count(b"\n", 0, start) + 1
        return complaint(path, start, line, content[start : start + 1])
    return ""


def complaint(path: str, byte: int, line: int, value: bytes) -> str:
    """What is wrong with a file in another encoding, and how to fix it.

    Args:
        path: The file's path.
        byte: Position in the file of the first byte that fits neither encoding, from 0.
        line: The line of that byte, from 1.
        value: The byte.
    """
    name = posixpath.basename(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    mended = shlex.join(["iconv", "-f", "CP1252", "-t", "UTF-8", name])
    return (
        f"is neither UTF-8 nor UTF-16: byte {byte} (line {line}) is {value!r}; save it as UTF-8, "
        f"say with: {mended} > NEW (CP1252 is western Windows's; or CP1251, GB18030, SHIFT_JIS, "
        "whatever it is in)"
    )
