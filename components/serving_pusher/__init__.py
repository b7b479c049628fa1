"""A blessed model -> its SavedModels as one version in the serving directory."""

from components.serving_pusher.component import ServingPusher

__all__ = ["ServingPusher"]
