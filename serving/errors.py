"""Errors about a serving directory, a server or a request, each in one sentence."""

from __future__ import annotations

from storage.addresses import SecretInAddressError, check_address
from storage.user_errors import FailedError, UserError


class ServingError(UserError):
    """A mistake that a user can correct from the message alone."""


class VersionGoneError(ServingError):
    """The server does not serve this version, or no longer does."""


class MissingSignatureError(ServingError):
    """The models are of a version that cannot do this yet."""


class RowsNeededError(ServingError):
    """The server draws requests together and takes only requests with one row per picture."""


class MissingModelError(ServingError):
    """There is no such model.

    Attributes:
        network: Its name.
    """

    def __init__(self, network: str, message: str) -> None:
        super().__init__(message)
        self.network = network


class BusyError(ServingError, FailedError):
    """The server cannot answer now, but may be able to in a moment."""


def check_place(address: str) -> None:
    """Raises a `ServingError` if the address of a serving directory or server holds a secret."""
    try:
        check_address(address)
    except SecretInAddressError as error:
        raise ServingError(str(error)) from None
