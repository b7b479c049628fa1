"""Weights are read back from an exported model as they were stored, or not at all."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.weights.errors import WeightsError
from trainer.weights.exported import exported_values

VALUES = [np.arange(3000, dtype=np.float32) / 7, np.ones((2, 2), np.float32)]


def write(folder: Path) -> Path:
    """As an exported network stores its variables; returns the file with their values."""
    module = tf.Module()
    module._variables = [tf.Variable(value) for value in VALUES]
    tf.train.Checkpoint(root=module).write(str(folder / "variables" / "variables"))
    [data] = (folder / "variables").glob("variables.data-*")
    return data


def read(folder: Path, shapes: list[tuple[int, ...]] | None = None) -> list[np.ndarray]:
    shapes = [value.shape for value in VALUES] if shapes is None else shapes
    model = types.SimpleNamespace(weights=[tf.zeros(shape) for shape in shapes])
    return list(exported_values(str(folder), "diffusion_model", model))


def test_they_are_those_that_were_stored(tmp_path: Path) -> None:
    write(tmp_path)
    for value, expected in zip(read(tmp_path), VALUES, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(WeightsError, match="does not hold the diffusion_model that"):
        read(tmp_path, [(3000,), (2, 3)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.write_bytes(data.read_bytes()[:500]),
        lambda data: data.write_bytes(bytes(len(data.read_bytes()))),
        lambda data: data.unlink(),
        lambda data: (data.parent / "variables.index").write_bytes(b"none"),
    ],
    ids=["cut", "overwritten", "gone", "without an index"],
)
def test_damaged_ones_are_told(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(write(tmp_path))
    with pytest.raises(WeightsError, match=r"variables/variables is missing or damaged: "):
        read(tmp_path)
