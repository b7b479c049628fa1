"""Tells failures the user can fix (shown in a line) from our own faults (shown in full).

Beam's workers and separate processes pass on an exception only as text, with its traceback. So
texts are searched, too, for the last exception in them.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import os
import re
import sys
from collections.abc import Callable

from pipeline import interruption
from pipeline.console import OUR_PACKAGES
from storage.errors import one_line
from storage.user_errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Always about the disk; other error numbers count only if the error names a file.
_OF_DISK = (*_NO_ROOM, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE)
_WAYS_OUT = {
    **dict.fromkeys(_NO_ROOM, "make room there, or choose another folder with --output"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM),
        "make it accessible, or choose another folder with --output",
    ),
    errno.EFBIG: "raise the limit (ulimit -f), or choose another folder with --output",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENOENT: "put it back, or start afresh with another --output",
}
# The wording of C++ libraries and of SQLite.
_PHRASES = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "readonly database": errno.EROFS,
    **{os.strerror(number): number for number in (*_OF_DISK, errno.EACCES)},
}
_NO_MEMORY = re.compile("OOM when allocating|failed to allocate memory|Cannot allocate memory")
_MEMORY_RAN_OUT = (
    "memory ran out: a smaller --batch-size, a smaller --image-size, or a larger "
    "training.accumulation_steps in a --config take less"
)

_RAISED = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_BEAMS_ADDITION = re.compile(r" \[while running '.*", re.DOTALL)
_TENSORFLOWS_ADDITION = re.compile(r"\{\{.*?\}\} ?")
_OS_ERROR = re.compile(r"\[Errno (\d+)\] [^:]*(?:: '(.*)')?")


EXIT_FAILED, EXIT_CONFIG = 1, 2
"""A step failed; a setting is wrong, and nothing was started."""


def exit_status(program: Callable[[], int]) -> int:
    """Runs a runner's command line; errors that it does not report itself are shown in a line.

    Args:
        program: Returns the exit status if it runs to its end.

    Returns:
        That status, or the one for a signal, for a user's mistake or for a failure of the machine.

    Raises:
        Exception: A fault of ours, which is shown in full.
    """
    with interruption.signals_raise():
        try:
            return program()
        except KeyboardInterrupt as stop:
            print("Interrupted before anything was started.", file=sys.stderr)
            return interruption.exit_status(interruption.signal_of(stop))
        except Exception as error:
            told = explanation(error)
            if told is None:
                raise
            print(f"error: {told}", file=sys.stderr)
            return EXIT_CONFIG if isinstance(error, UserError) else EXIT_FAILED


def explanation(error: BaseException) -> str | None:
    """What the user can fix, in one line (a table may follow); `None` if the fault is ours.

    Args:
        error: What was raised. Its causes count, too, and so do errors of the disk while another
            error was handled.
    """
    link: BaseException | None = error
    from_cause = True
    first = None
    while link is not None:
        told = _of_machine(link)
        if told is not None:
            # The first failure names the file; later ones, such as recording it, do not.
            first = told
        elif from_cause and first is None:
            told = str(link) if isinstance(link, UserError) else explanation_in(str(link))
            if told is not None:
                return told
        from_cause = from_cause and link.__cause__ is not None
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return first


def explanation_in(text: str) -> str | None:
    """The `explanation` of the last exception in a text, which may be a log or a traceback."""
    lines = text.rstrip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        found = _RAISED.fullmatch(lines[index])
        kind = found and _exception_class(found[1])
        if not found or kind is None:
            continue
        message = "\n".join([found[2] or "", *lines[index + 1 :]])
        message = _BEAMS_ADDITION.sub("", message).rstrip()
        if issubclass(kind, UserError):
            return message
        if issubclass(kind, OSError) and (parts := _OS_ERROR.match(message)):
            number = int(parts[1])
            return _of_machine(OSError(number, os.strerror(number), parts[2]))
        return _of_machine(kind() if kind is MemoryError else RuntimeError(message))
    return None


def _of_machine(error: BaseException) -> str | None:
    """The explanation if the disk or the memory is at fault."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOMEM:
            return _MEMORY_RAN_OUT
        if error.errno in _OF_DISK or error.filename is not None:
            return _of_disk(error.errno, error.filename)
        return None
    text = str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return _MEMORY_RAN_OUT
    # For a text with a traceback, the exception at its end counts.
    if "Traceback" in text:
        return None
    for phrase, number in _PHRASES.items():
        if phrase in text:
            said, found, _ = one_line(error).partition(phrase)
            return _of_disk(number, None, _TENSORFLOWS_ADDITION.sub("", said) + found)
    return None


def _of_disk(number: int, path: object, text: str | None = None) -> str:
    what = text or os.strerror(number)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    where = f"{path}: " if path is not None else ""
    way_out = _WAYS_OUT.get(number)
    return f"{where}{what}{f': {way_out}' if way_out else ''}"


def _exception_class(name: str) -> type[BaseException] | None:
    """The class that a traceback names; `Exception` if a library's class cannot be looked up."""
    module, _, qualified = name.rpartition(".")
    found = getattr(builtins, name, None)
    if module.partition(".")[0] in OUR_PACKAGES:
        try:
            found = getattr(importlib.import_module(module), qualified, None)
        except ImportError:
            return None
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    return Exception if name.endswith(("Error", "Exception")) else None
