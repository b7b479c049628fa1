"""Reads `models.config`, which tells the servers what to load from a serving directory."""

from __future__ import annotations

import re

from storage import filesystem

CONFIG_NAME = "models.config"

_VERSION = re.compile(rb"versions: *([0-9]+)")


def named_versions(serving_dir: str) -> list[int]:
    """The versions that it names, with repetitions; raises an OSError if there is no such file."""
    contents = filesystem.read_bytes(filesystem.join(serving_dir, CONFIG_NAME))
    return [int(number) for number in _VERSION.findall(contents)]
