"""Reads and writes weight files; `trainer.weights.base_model` finds and verifies them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import h5py
import keras
import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from storage.errors import one_line
from storage.folders import HASHES_NAME
from storage.transfer import sha256_of
from trainer.presets import NETWORKS
from trainer.weights.diffusers_format import load_tensors
from trainer.weights.errors import WeightsError

Layout = Literal["keras_cv", "diffusers", "original"]
"""Whose file layout is used, which decides the names of the tensors."""


def load_files(
    model: keras.Model, network: str, layout: Layout, paths: Sequence[Path], shown: list[str]
) -> None:
    """Loads files that are already verified.

    Args:
        model: Built by `trainer.networks`.
        network: One of `trainer.presets.NETWORKS`.
        layout: Layout of the files.
        paths: Files on this machine; one in KerasCV's layout.
        shown: Their names in messages.

    Raises:
        WeightsError: A file is damaged, or a tensor does not fit.
    """
    if layout == "keras_cv":
        _load_file(model, paths[0], shown[0])
    else:
        load_tensors(model, network, paths, shown, original=layout == "original")


def load_weights_file(model: keras.Model, path: str) -> None:
    """Loads a `.safetensors` file of `save_weights_file`, or an `.h5` of Keras 2, by topology.

    Args:
        model: Built by `trainer.networks`.
        path: Any path that TensorFlow can open.

    Raises:
        WeightsError: The file is missing or damaged, or its tensors are not exactly the model's.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = Path(path)
        if not local.exists():
            local = Path(folder, os.path.basename(path))
            try:
                tf.io.gfile.copy(path, str(local))
            except tf.errors.OpError as error:
                raise WeightsError(f"{path} cannot be read: {error.message}") from None
        _load_file(model, local, path)


def save_weights_file(model: keras.Model, path: str) -> None:
    """Writes the weights of a model as float16 `.safetensors`, keyed by position and name."""
    safetensors.numpy.save_file(
        {key: np.asarray(variable).astype(np.float16) for key, variable in _keyed(model)}, path
    )


def write_hashes(folder: str) -> None:
    """Writes `SHA256SUMS` (in the format of `sha256sum`) for the weight files in `folder`."""
    lines = [
        f"{sha256_of(path)}  {path.name}\n" for path in sorted(Path(folder).glob("*.safetensors"))
    ]
    Path(folder, HASHES_NAME).write_text("".join(lines))


def _load_file(model: keras.Model, path: Path, shown: str) -> None:
    try:
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                _load_keras_2(model, file, shown)
        else:
            _load_safetensors(model, path, shown)
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        reason = one_line(error)
        raise WeightsError(f"{shown} is damaged or not a weights file: {reason}") from None


def _load_safetensors(model: keras.Model, path: Path, shown: str) -> None:
    with safetensors.safe_open(path, framework="np") as tensors:
        expected = {key: tuple(variable.shape) for key, variable in _keyed(model)}
        found = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))
            raise WeightsError(
                f"{shown} holds another model: {len(wrong)} tensors differ, the first is "
                f"{wrong[0][0]} of shape {wrong[0][1]}"
            )
        for key, variable in _keyed(model):
            variable.assign(tensors.get_tensor(key).astype(np.float32))


def _load_keras_2(model: keras.Model, file: h5py.File, shown: str) -> None:
    """Loads what `Model.save_weights` of Keras 2 wrote, by topology.

    As in Keras, layers without weights do not count, and the others and their weights are matched
    only by their order. Keras' own loader needs several lines to report a tensor that does not fit,
    after it has already set the ones before it.
    """
    root = file
    if "layer_names" not in file.attrs and "model_weights" in file:
        # Written by `Model.save`.
        root = file["model_weights"]
    if not any(name.startswith("layer_names") for name in root.attrs):
        raise WeightsError(
            f"{shown} is not a Keras 2 weights file: it names no layers; save it in Keras 2 with "
            "save_weights(..., save_format='h5')"
        )
    stored = [
        (layer, weights)
        for layer in _attribute(root.attrs, "layer_names")
        if (weights := _attribute(root[layer].attrs, "weight_names"))
    ]
    layers = [layer for layer in model.layers if layer.weights]
    if len(stored) != len(layers):
        raise WeightsError(
            f"{shown} holds another model than this {model.name}: it has {len(stored)} layers with "
            f"weights, this has {len(layers)}"
        )
    pairs = []
    for (name, weights), layer in zip(stored, layers, strict=True):
        if len(weights) != len(layer.weights):
            raise WeightsError(
                f"{shown} holds another model than this {model.name}: its layer {name} has "
                f"{len(weights)} tensors, but {layer.name} has {len(layer.weights)}"
            )
        for weight, variable in zip(weights, layer.weights, strict=True):
            values = root[name][weight]
            if tuple(values.shape) != tuple(variable.shape):
                raise WeightsError(
                    f"{shown} holds another model than this {model.name}: {weight} has the shape "
                    f"{list(values.shape)}, but {variable.path} has {list(variable.shape)}"
                )
            pairs.append((values, variable))
    for values, variable in pairs:
        variable.assign(np.asarray(values, np.float32))


def _attribute(attributes: Mapping[str, np.ndarray], name: str) -> list[str]:
    """A list of names, which Keras 2 splits if it is too long for one attribute."""
    if name in attributes:
        pieces = [attributes[name]]
    else:
        pieces = []
        while f"{name}{len(pieces)}" in attributes:
            pieces.append(attributes[f"{name}{len(pieces)}"])
    return [
        value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for piece in pieces
        for value in piece
    ]


def _keyed(model: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    for index, variable in enumerate(model.weights):
        yield f"{index:04d}.{variable.name}", variable


def randomize(model: keras.Model, network: str) -> None:
    """Draws initial weights that depend only on the name of the network and the shapes."""
    for index, variable in enumerate(model.weights):
        rng = np.random.default_rng([NETWORKS.index(network), index])
        if variable.name == "embeddings":
            values = rng.uniform(-0.05, 0.05, variable.shape)
        elif variable.name == "kernel":
            # Glorot and Bengio (2010), equation 16.
            receptive = int(np.prod(variable.shape[:-2]))
            limit = np.sqrt(6.0 / (receptive * (variable.shape[-2] + variable.shape[-1])))
            values = rng.uniform(-limit, limit, variable.shape)
        else:
            values = np.full(variable.shape, 1.0 if variable.name == "gamma" else 0.0)
        variable.assign(values.astype(np.float32))
