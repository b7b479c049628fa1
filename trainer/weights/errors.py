"""What is wrong with weights."""

from storage.folders import FolderError


class WeightsError(FolderError):
    """Weights that are missing, corrupt or of another model; the message is one line."""
