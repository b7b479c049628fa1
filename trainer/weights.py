"""Base weights: found, verified, loaded; never silently random."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from trainer.presets import NETWORKS, Preset

DEFAULT_SOURCE = "default"
RANDOM_SOURCE = "random"
HASHES_NAME = "SHA256SUMS"

_SHIPPED = Path(__file__).resolve().parent / "base_weights"
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """Weights that are missing, corrupt or of another model; the message is one line."""


def weights_folder(preset: Preset, source: str) -> str:
    """The folder that `source` stands for.

    Args:
        preset: Whose weights.
        source: `"default"` or a folder; not `"random"`.

    Raises:
        WeightsError: There is no default for this preset.
    """
    if source != DEFAULT_SOURCE:
        return source
    if not preset.ships_weights:
        names = ", ".join(file.name for file in preset.weight_files.values())
        raise WeightsError(
            f"preset {preset.name!r} ships no base weights: set base_weights to a folder that "
            f"holds {names}, or to {RANDOM_SOURCE!r} to start from noise"
        )
    return str(_SHIPPED / preset.name)


def check_source(preset: Preset, source: str) -> None:
    """Raises a `WeightsError` where a file that `source` should hold is missing."""
    if source == RANDOM_SOURCE:
        return
    for network in NETWORKS:
        _existing_file(preset, network, source)


def load_base_weights(model: keras.Model, network: str, preset: Preset, source: str) -> None:
    """Loads one network's base weights, after checking the file's hash and every shape.

    Args:
        model: Built by `trainer.models`.
        network: One of `trainer.presets.NETWORKS`.
        preset: What the model was built from.
        source: `"default"`, `"random"`, or a folder (any path that TensorFlow opens).

    Raises:
        WeightsError: A file is missing, its hash is wrong, or a tensor does not fit.
    """
    if source == RANDOM_SOURCE:
        logger.warning("THE %s STARTS FROM RANDOM WEIGHTS, as asked.", network.upper())
        _randomize(model, network)
        return
    path = _existing_file(preset, network, source)
    expected = _expected_hash(preset, network, source)
    actual = _sha256(path)
    if actual != expected:
        raise WeightsError(
            f"{path} is corrupt or another file: its SHA-256 is {actual}, expected {expected}; "
            "fetch it again"
        )
    load_weights_file(model, path)


def base_weights_hash(preset: Preset, source: str, networks: Sequence[str] = NETWORKS) -> str:
    """SHA-256 (hex) that stands for the base weights of `networks`; `"random"` where they are."""
    if source == RANDOM_SOURCE:
        return RANDOM_SOURCE
    hashes = [_expected_hash(preset, network, source) for network in networks]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def load_weights_file(model: keras.Model, path: str) -> None:
    """Loads `.safetensors` as `save_weights_file` wrote it, or a Keras `.h5`, by topology.

    Raises:
        WeightsError: The file does not hold exactly this model's tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        if os.path.exists(path):
            local = path
        else:
            tf.io.gfile.copy(path, local)
        if path.endswith(".h5"):
            model.load_weights(local)
            return
        tensors = safetensors.numpy.load_file(local)
    expected = {key: tuple(variable.shape) for key, variable in _keyed(model)}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise WeightsError(
            f"{path} holds another model than this one: {len(wrong)} tensors differ, the first is "
            f"{wrong[0][0]} of shape {wrong[0][1]}"
        )
    for key, variable in _keyed(model):
        variable.assign(tensors[key].astype(np.float32))


def save_weights_file(model: keras.Model, path: str) -> None:
    """Writes a model's weights as float16 `.safetensors`, keyed by position and name."""
    safetensors.numpy.save_file(
        {key: np.asarray(variable).astype(np.float16) for key, variable in _keyed(model)}, path
    )


def write_hashes(folder: str) -> None:
    """Writes `SHA256SUMS` (as `sha256sum` does) over the weight files in `folder`."""
    lines = [
        f"{_sha256(str(path))}  {path.name}\n"
        for path in sorted(Path(folder).glob("*.safetensors"))
    ]
    Path(folder, HASHES_NAME).write_text("".join(lines))


def _keyed(model: keras.Model) -> list[tuple[str, keras.Variable]]:
    return [(f"{i:04d}.{v.name}", v) for i, v in enumerate(model.weights)]


def _existing_file(preset: Preset, network: str, source: str) -> str:
    path = os.path.join(weights_folder(preset, source), preset.weight_files[network].name)
    if not tf.io.gfile.exists(path):
        raise WeightsError(
            f"the {network}'s base weights are missing: there is no {path}; set base_weights to a "
            f"folder that holds it, or to {RANDOM_SOURCE!r} to start from noise"
        )
    return path


def _expected_hash(preset: Preset, network: str, source: str) -> str:
    name, published = preset.weight_files[network].name, preset.weight_files[network].sha256
    sums = os.path.join(weights_folder(preset, source), HASHES_NAME)
    if tf.io.gfile.exists(sums):
        with tf.io.gfile.GFile(sums, "r") as f:
            listed = {line.split()[1]: line.split()[0] for line in f if line.strip()}
        if name in listed:
            return listed[name]
    if published is None:
        raise WeightsError(f"{sums} does not list {name}, so the file cannot be verified")
    return published


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _randomize(model: keras.Model, network: str) -> None:
    """Draws initial weights that depend on the network's name and the shapes alone."""
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
