"""The models of a serving directory, loaded into this process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.errors import MissingModelError, MissingSignatureError, ServingError
from serving.releases import SERVED_NETWORKS, Release
from storage import filesystem
from storage.greetings import no_greetings
from storage.machine import free_memory_bytes
from storage.progress import Work, WorkProgress

with no_greetings():
    import tensorflow as tf
    from tensorflow.python.client import device_lib

# Weights up to this size fit into a processor's cache.
_SMALL_BYTES = 64 << 20
_LOADING = "loading the networks"


class LoadedModels:
    """One release, in this process's memory."""

    def __init__(self, release: Release) -> None:
        """Loads its models.

        Raises:
            ServingError: A model is missing or damaged.
        """
        self._version = release.version
        folders = {network: release.model_folder(network) for network in release.networks}
        sizes = {network: _bytes_of_weights(folder) for network, folder in folders.items()}
        _settle_threads(sizes["diffusion_model"])
        # The loaded objects own the variables; their signatures only borrow them.
        self._models = {}
        megabytes = {network: max(1, size >> 20) for network, size in sizes.items()}
        with WorkProgress(Work(_LOADING, sum(megabytes.values()), "MB")) as progress:
            # Starts the clock.
            progress.update(_LOADING, 0)
            for network, folder in folders.items():
                self._models[network] = _load(folder)
                progress.update(_LOADING, megabytes[network])

    def version(self, networks: Sequence[str] = SERVED_NETWORKS) -> int:
        """The version that was loaded; see `serving.client.Models`."""
        for network in networks:
            if network not in self._models:
                raise MissingModelError(network, f"release {self._version} has no {network}")
        return self._version

    def call(
        self,
        network: str,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        version: int,
    ) -> dict[str, np.ndarray]:
        """Calls a signature; see `serving.client.Models`."""
        model = self._models[network]
        if signature not in model.signatures:
            raise MissingSignatureError(
                f"the {network} of release {version} has no signature {signature}; "
                f"it has: {', '.join(sorted(model.signatures)) or 'none'}"
            )
        try:
            tensors = {name: tf.constant(value) for name, value in inputs.items()}
            found = model.signatures[signature](**tensors)
        except (TypeError, tf.errors.OpError) as error:
            raise ServingError(
                f"the {network} of release {version} failed: {_first_line(error)}"
            ) from error
        return {name: found[name].numpy() for name in outputs}

    def encode(self, images: np.ndarray, version: int) -> np.ndarray:
        """Latents, float32 [B, h, w, 4]."""
        inputs, outputs = {"images": images}, ("latent",)
        [latent] = self.call("image_encoder", "serving_default", inputs, outputs, version).values()
        return latent

    def decode(self, latent: np.ndarray, version: int) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3]."""
        outputs = ("generated_images",)
        [images] = self.call(
            "decoder", "serving_default", {"latent": latent}, outputs, version
        ).values()
        return images

    def free_memory_bytes(self) -> int:
        """Free memory of the GPU (the first of several), or of this machine without a GPU."""
        gpus = [d.memory_limit for d in device_lib.list_local_devices() if d.device_type == "GPU"]
        if not gpus:
            return free_memory_bytes()
        held: int = tf.config.experimental.get_memory_info("GPU:0")["current"]
        return max(0, int(gpus[0]) - held)


def _bytes_of_weights(folder: str) -> int:
    pattern = filesystem.join(folder, "variables", "variables.data-*")
    return sum(tf.io.gfile.stat(path).length for path in tf.io.gfile.glob(pattern))


def _settle_threads(size: int) -> None:
    """Gives each operation one thread if the model is small, unless that is already set.

    Dividing an operation of a few microseconds takes longer than doing it. With one thread per
    operation, and one operation per core at a time, a picture of `tiny` takes half the time.
    """
    threading = tf.config.threading
    if size > _SMALL_BYTES or threading.get_intra_op_parallelism_threads():
        return
    # Fails if TensorFlow is already at work in this process.
    with contextlib.suppress(RuntimeError):
        threading.set_intra_op_parallelism_threads(1)


def _load(folder: str) -> Any:
    try:
        return tf.saved_model.load(folder)
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise ServingError(
            f"the SavedModel in {folder} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """What an error says in one line; a graph's own check, if that is what failed."""
    if failed := re.search(r"assertion failed: \[(.+)\]", str(error)):
        return failed[1].replace("] [", " ")
    return str(error).partition("\n")[0] or type(error).__name__
