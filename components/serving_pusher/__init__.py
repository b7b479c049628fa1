"""A blessed model -> its SavedModels under one version in the serving directory."""

from components.serving_pusher.component import ServingPusher

__all__ = ["ServingPusher"]
