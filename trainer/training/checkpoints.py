"""Checkpoints of a run: atomic, few, and restored whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from storage.errors import one_line
from storage.user_errors import UserError

_CHECKPOINT = "ckpt"
_KEPT = "kept-"


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """A checkpoint of another training, which one with more steps goes on from.

    Attributes:
        folder: Of that training.
        step: Optimizer steps done.
    """

    folder: str
    step: int

    @property
    def path(self) -> str:
        """Of the checkpoint, as TensorFlow names it."""
        return os.path.join(self.folder, f"{_CHECKPOINT}-{self.step}")


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
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, folder, max_to_keep=kept, checkpoint_name=_CHECKPOINT
        )

    @property
    def latest(self) -> str | None:
        """Path of the latest checkpoint."""
        return self._manager.latest_checkpoint

    def restore(self, start: StartingPoint | None = None) -> StartingPoint | None:
        """Restores the latest checkpoint; where there is none, the one to start from, if any.

        Returns:
            The one to start from, if that was restored.

        Raises:
            AssertionError: It is not of exactly this state.
            UserError: The one to start from is damaged.
        """
        if self.latest:
            self._checkpoint.restore(self.latest).assert_consumed()
            return None
        if start is not None:
            try:
                self._checkpoint.restore(start.path).assert_consumed()
            # What is cut off, TensorFlow's reader finds out of range.
            except (tf.errors.OpError, IndexError) as error:
                raise UserError(
                    f"the checkpoint {start.path}, which training would go on from, cannot be read "
                    f"({one_line(error)}): remove {start.folder} to do all steps anew"
                ) from None
        return start

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

    def take_over(self, folder: str, step: int) -> None:
        """Copies those of `step` from another training's folder."""
        tf.io.gfile.makedirs(self._folder)
        for path in kept_files(folder, step):
            target = os.path.join(self._folder, os.path.basename(path))
            tf.io.gfile.copy(path, target, overwrite=True)

    def restore(self, step: int) -> None:
        """Makes the variables what they were at `step`.

        Raises:
            AssertionError: Other variables were written.
        """
        self._checkpoint.read(self._path(step)).assert_consumed()

    def _path(self, step: int) -> str:
        return _kept_path(self._folder, step)

    def _remove_others(self, steps: set[int | None]) -> None:
        names = {os.path.basename(self._path(step)) for step in steps if step is not None}
        for found in tf.io.gfile.listdir(self._folder):
            # A folder is what a kill leaves of unfinished files.
            name, path = found.rstrip("/"), os.path.join(self._folder, found)
            if name.startswith(_KEPT) and name.split(".")[0] not in names:
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def checkpoint_steps(folder: str) -> list[int]:
    """The steps of the whole checkpoints that are in `folder`, in their order."""
    state = tf.train.get_checkpoint_state(folder)
    # By name: of a folder that was moved, or is mounted elsewhere, the places may be others now.
    names = [os.path.basename(path) for path in state.all_model_checkpoint_paths] if state else []
    steps = [int(name.rpartition("-")[2]) for name in names if name.startswith(f"{_CHECKPOINT}-")]
    return sorted(step for step in steps if _is_whole(StartingPoint(folder, step).path))


def kept_files(folder: str, step: int) -> list[str]:
    """The files that `KeptWeights` wrote of a step; none where they are not whole."""
    path = _kept_path(folder, step)
    return _files(path) if _is_whole(path) else []


def _kept_path(folder: str, step: int) -> str:
    return os.path.join(folder, f"{_KEPT}{step:06d}")


def _files(path: str) -> list[str]:
    # As TensorFlow looks for them, which restores nothing where a folder's name is like a pattern.
    files: list[str] = tf.io.gfile.glob(f"{path}.*")
    return files


def _is_whole(path: str) -> bool:
    names = [os.path.basename(file) for file in _files(path)]
    counts = [int(name.rpartition("-of-")[2]) for name in names if ".data-" in name]
    return any(name.endswith(".index") for name in names) and counts[:1] == [len(counts)]
