"""Checkpoints of a run: written atomically, few, and restored whole or not at all."""

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
    """A checkpoint of another training, from which one with more steps continues.

    Attributes:
        folder: Folder of that training.
        step: Optimizer steps done.
    """

    folder: str
    step: int

    @property
    def path(self) -> str:
        """Path of the checkpoint, as TensorFlow names it."""
        return os.path.join(self.folder, f"{_CHECKPOINT}-{self.step}")


class RunCheckpoints:
    """The state of a run in a folder, local or remote.

    TensorFlow first writes the files of a checkpoint and then renames the file that names the
    latest one; a run that is killed in between leaves the previous checkpoint as the latest.
    """

    def __init__(self, folder: str, *, kept: int, **state: Any) -> None:
        """Looks into `folder`.

        Args:
            folder: Holds the checkpoints of one run.
            kept: How many are kept; older ones are deleted.
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
        """Restores the latest checkpoint or, if there is none, the starting point, if any.

        Returns:
            The starting point, if it was restored.

        Raises:
            AssertionError: The checkpoint does not hold exactly this state.
            UserError: The starting point is damaged.
        """
        if self.latest:
            self._checkpoint.restore(self.latest).assert_consumed()
            return None
        if start is not None:
            try:
                self._checkpoint.restore(start.path).assert_consumed()
            # For a truncated file, TensorFlow's reader reports an index out of range.
            except (tf.errors.OpError, IndexError) as error:
                raise UserError(
                    f"the checkpoint {start.path}, from which training would continue, cannot be "
                    f"read ({one_line(error)}): remove {start.folder} to do all steps again"
                ) from None
        return start

    def save(self, step: int) -> None:
        """Writes the checkpoint `step`."""
        self._manager.save(checkpoint_number=step)


class KeptWeights:
    """The weights of the best step so far, next to the checkpoints.

    A run that is killed resumes from its last checkpoint, in which an earlier step may be the best.
    The weights of that step stay until a checkpoint records the later one.
    """

    def __init__(self, folder: str, variables: Sequence[tf.Variable]) -> None:
        """Writes and reads nothing yet.

        Args:
            folder: Holds the checkpoints of the run.
            variables: The variables that `save` writes and `restore` sets.
        """
        self._folder = folder
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))
        self._needed: int | None = None

    def save(self, step: int) -> None:
        """Writes the current variables, the best so far."""
        tf.io.gfile.makedirs(self._folder)
        self._checkpoint.write(self._path(step))
        self._remove_others({step, self._needed})

    def saved(self, step: int) -> None:
        """Notes that a checkpoint records `step` as the best: others are no longer needed."""
        if step != self._needed:
            self._needed = step
            self._remove_others({step})

    def take_over(self, folder: str, step: int) -> None:
        """Copies the weights of `step` from the folder of another training."""
        tf.io.gfile.makedirs(self._folder)
        for path in kept_files(folder, step):
            target = os.path.join(self._folder, os.path.basename(path))
            tf.io.gfile.copy(path, target, overwrite=True)

    def restore(self, step: int) -> None:
        """Sets the variables to their values at `step`.

        Raises:
            AssertionError: Other variables were written.
        """
        self._checkpoint.read(self._path(step)).assert_consumed()

    def _path(self, step: int) -> str:
        return _kept_path(self._folder, step)

    def _remove_others(self, steps: set[int | None]) -> None:
        names = {os.path.basename(self._path(step)) for step in steps if step is not None}
        for found in tf.io.gfile.listdir(self._folder):
            # A run that is killed leaves unfinished files in a folder.
            name, path = found.rstrip("/"), os.path.join(self._folder, found)
            if name.startswith(_KEPT) and name.split(".")[0] not in names:
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def checkpoint_steps(folder: str) -> list[int]:
    """The steps of the complete checkpoints in `folder`, in ascending order."""
    state = tf.train.get_checkpoint_state(folder)
    # By name: if a folder was moved or is mounted elsewhere, the recorded paths are outdated.
    names = [os.path.basename(path) for path in state.all_model_checkpoint_paths] if state else []
    steps = [int(name.rpartition("-")[2]) for name in names if name.startswith(f"{_CHECKPOINT}-")]
    return sorted(step for step in steps if _is_whole(StartingPoint(folder, step).path))


def kept_files(folder: str, step: int) -> list[str]:
    """The files that `KeptWeights` wrote for a step; none if they are incomplete."""
    path = _kept_path(folder, step)
    return _files(path) if _is_whole(path) else []


def _kept_path(folder: str, step: int) -> str:
    return os.path.join(folder, f"{_KEPT}{step:06d}")


def _files(path: str) -> list[str]:
    # Found as TensorFlow finds them; it restores nothing if the name of a folder is like a pattern.
    files: list[str] = tf.io.gfile.glob(f"{path}.*")
    return files


def _is_whole(path: str) -> bool:
    names = [os.path.basename(file) for file in _files(path)]
    counts = [int(name.rpartition("-of-")[2]) for name in names if ".data-" in name]
    return any(name.endswith(".index") for name in names) and counts[:1] == [len(counts)]
