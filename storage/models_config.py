"""What a serving directory's `models.config` has the servers load."""

from __future__ import annotations

import re

from storage import filesystem

CONFIG_NAME = "models.config"

_VERSION = re.compile(rb"versions: *([0-9]+)")


def named_versions(serving_dir: str) -> list[int]:
    """The versions that it names, as often as it does; raises an OSError where there is none."""
    contents = filesystem.read_bytes(filesystem.join(serving_dir, CONFIG_NAME))
    return [int(number) for number in _VERSION.findall(contents)]
