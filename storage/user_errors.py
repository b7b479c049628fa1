"""Errors that whoever runs this can mend."""

from __future__ import annotations


class UserError(Exception):
    """What a setting, the data or the disk causes, and whoever runs this can mend.

    The message, which is all that the screen shows of it, says in one line what is wrong and the
    way out; a table may follow.
    """


class FailedError(UserError):
    """Work that began and could not be finished, by no mistake of its command.

    The same command may succeed later: a server was busy, a connection broke, another process came
    first.
    """


class FileError(UserError, OSError):
    """A file or folder of a bucket that cannot be had; the message says which, and why."""
