"""Reads back the weights of a model that the Trainer exported."""

from __future__ import annotations

import re
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer.weights.errors import WeightsError

_VARIABLE = re.compile(r"_variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE")


def exported_values(folder: str, network: str, model: keras.Model) -> Iterator[np.ndarray]:
    """The weights in an exported SavedModel, in the order of `model.weights`.

    Args:
        folder: Folder of the SavedModel.
        network: One of `trainer.presets.NETWORKS`.
        model: Built by `trainer.networks`, like the exported one.

    Yields:
        Every weight, in its stored type.

    Raises:
        WeightsError: The SavedModel is missing, damaged or of another network.
    """
    path = f"{folder}/variables/variables"
    try:
        # `tf.train.load_checkpoint` first checks whether it is a folder, which `ram://` reports for
        # any prefix of a name.
        stored = tf.compat.v1.train.NewCheckpointReader(path)
    except (tf.errors.OpError, ValueError) as error:
        raise _damaged(path, error) from None
    shapes = stored.get_variable_to_shape_map()
    keys = {int(match[1]): key for key in shapes if (match := _VARIABLE.fullmatch(key))}
    ordered = [keys[index] for index in sorted(keys)]
    if [tuple(shapes[key]) for key in ordered] != [tuple(v.shape) for v in model.weights]:
        raise WeightsError(f"{path} does not hold the {network} that it should")
    for key in ordered:
        try:
            value = stored.get_tensor(key)
        # For a truncated file, TensorFlow reports an index out of range.
        except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
            raise _damaged(path, error) from None
        yield value


def _damaged(path: str, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is missing or damaged: {str(error).splitlines()[0]}")
