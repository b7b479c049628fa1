"""Checkpoints of a run: atomic, few, and restored whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

_KEPT = "kept-"


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


class KeptWeights:
    """The weights of the best step so far, beside the checkpoints.

    A run that is killed goes on from its last checkpoint, which may know an earlier step as the
    best: that one's weights stay until a checkpoint knows of the later one.
    """

    def __init__(self, folder: str, variables: Sequence[tf.Variable]) -> None:
        """Writes and reads nothing yet.

        Args:
            folder: Holds the checkpoints of the run.
            variables: Those that are kept; they hold what `save` writes, and take what is restored.
        """
        self._folder = folder
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))
        self._needed: int | None = None

    def save(self, step: int) -> None:
        """Writes the variables as they are, the best ones of all so far."""
        tf.io.gfile.makedirs(self._folder)
        self._checkpoint.write(self._path(step))
        self._remove_others({step, self._needed})

    def saved(self, step: int) -> None:
        """Notes that a checkpoint knows `step` as the best: others are needed no more."""
        if step != self._needed:
            self._needed = step
            self._remove_others({step})

    def restore(self, step: int) -> None:
        """Makes the variables what they were at `step`.

        Raises:
            AssertionError: Other variables were written.
        """
        self._checkpoint.read(self._path(step)).assert_consumed()

    def _path(self, step: int) -> str:
        return os.path.join(self._folder, f"{_KEPT}{step:06d}")

    def _remove_others(self, steps: set[int | None]) -> None:
        names = {os.path.basename(self._path(step)) for step in steps if step is not None}
        for found in tf.io.gfile.listdir(self._folder):
            # A folder is what a kill leaves of unfinished files.
            name, path = found.rstrip("/"), os.path.join(self._folder, found)
            if name.startswith(_KEPT) and name.split(".")[0] not in names:
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
