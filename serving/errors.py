"""What can be wrong with a serving directory or a request, in one sentence."""


class ServingError(Exception):
    """A mistake that the message alone lets a user correct."""
