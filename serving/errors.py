"""What can be wrong with a serving directory, a server or a request, in one sentence."""

from storage.errors import UserError


class ServingError(UserError):
    """A mistake that the message alone lets a user correct."""


class VersionGoneError(ServingError):
    """The server does not serve this version, or no longer."""


class BusyError(ServingError):
    """The server cannot answer now, but may in a moment."""
