"""Errors that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """An error caused by a setting, the data or the disk, which the user can fix.

    The screen shows only the message. It says in one line what is wrong and how to fix it; a table
    may follow.
    """


class FailedError(UserError):
    """Work that started and could not be finished, although its command is right.

    The same command may succeed later: a server was busy, a connection broke, or another process
    came first.
    """


class FileError(UserError, OSError):
    """A file or folder in a bucket is not available; the message says which, and why."""
