"""The error about weights."""

from storage.folders import FolderError


class WeightsError(FolderError):
    """Weights that are missing, corrupt or for another model; the message is one line."""
