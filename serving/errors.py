"""What can be wrong with a serving directory, a server or a request, in one sentence."""

from __future__ import annotations

from storage.addresses import SecretInAddressError, check_address
from storage.user_errors import FailedError, UserError


class ServingError(UserError):
    """A mistake that the message alone lets a user correct."""


class VersionGoneError(ServingError):
    """The server does not serve this version, or no longer."""


class MissingSignatureError(ServingError):
    """The models are of a version that cannot do this yet."""


class RowsNeededError(ServingError):
    """The server draws requests together, and takes none that has not a row for each picture."""


class MissingModelError(ServingError):
    """There is no such model.

    Attributes:
        network: Its name.
    """

    def __init__(self, network: str, message: str) -> None:
        super().__init__(message)
        self.network = network


class BusyError(ServingError, FailedError):
    """The server cannot answer now, but may in a moment."""


def check_place(address: str) -> None:
    """Raises a `ServingError` where a serving directory's or server's address holds a secret."""
    try:
        check_address(address)
    except SecretInAddressError as error:
        raise ServingError(str(error)) from None
