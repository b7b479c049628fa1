"""Files that exist whole or not at all."""

from __future__ import annotations

import os

import tensorflow as tf


def write_whole(path: str, text: str) -> None:
    """Writes a file that gets its name only when it is complete; makes its folder."""
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path + ".partial", "w") as f:
        f.write(text)
    tf.io.gfile.rename(path + ".partial", path, overwrite=True)
