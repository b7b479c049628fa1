"""Checkpoints of a run: atomic, few, and restored whole or not at all."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class RunCheckpoints:
    """The state of a run in a folder, local or remote.

    TensorFlow writes a checkpoint's files first and then, by a rename, the one that names the
    latest; a run that is killed in between leaves the checkpoint before.
    """

    def __init__(self, folder: str, *, kept: int, **state: Any) -> None:
        """Looks into `folder`.

        Args:
            folder: Holds the checkpoints of one run.
            kept: Older ones are deleted.
            **state: Variables, lists of them, or objects that TensorFlow can track.
        """
        self._checkpoint = tf.train.Checkpoint(**state)
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=kept)

    @property
    def latest(self) -> str | None:
        """Path of the latest checkpoint."""
        return self._manager.latest_checkpoint

    def restore(self) -> None:
        """Restores the latest checkpoint, if there is one.

        Raises:
            AssertionError: It is not of exactly this state.
        """
        if self.latest:
            self._checkpoint.restore(self.latest).assert_consumed()

    def save(self, step: int) -> None:
        """Writes the checkpoint `step`."""
        self._manager.save(checkpoint_number=step)
