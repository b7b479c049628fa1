"""A blessed model -> three SavedModels under one version in the serving directory."""

from components.serving_pusher.component import ServingPusher

__all__ = ["ServingPusher"]
