"""What the REST and gRPC clients of TensorFlow Serving share: versions, retries, timeouts."""

from __future__ import annotations

import abc
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from serving.errors import (
    BusyError,
    MissingModelError,
    MissingSignatureError,
    RowsNeededError,
    ServingError,
    VersionGoneError,
)
from serving.releases import SERVED_NETWORKS

SERVERS_MEMORY_BYTES = 8 * 10**9
"""Memory of a server that a picture may take, if no limit is given.

The deployment files request 16 GiB, half of which two releases of `sd-v1-4` take.
"""

_NUMBERS = {3: "three", 4: "four"}
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 8.0
# TensorFlow Serving's words, over REST and gRPC; neither has a status code just for this.
_ROWS_NEEDED = re.compile(r"Batching (session )?Run\(\) input tensors must have")
_NO_SIGNATURE = re.compile(r'Serving signature (name: |key )"[^"]*" not found')

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class RemoteModels(abc.ABC):
    """The models on a server. Several threads may use one object."""

    def __init__(
        self, address: str, version: int | None, timeout_seconds: float, retries: int
    ) -> None:
        """Connects to nothing yet.

        Args:
            address: What to call the server in messages.
            version: The version to use; the newest that all models have if None.
            timeout_seconds: The longest that one call may take, with its retries.
            retries: How often to repeat a call that the server could not answer at the time.
        """
        self._address = address
        self._pinned = version
        self._timeout_seconds = timeout_seconds
        self._retries = retries

    def version(self, networks: Sequence[str] = SERVED_NETWORKS) -> int:
        """The newest version that the server has of all these models.

        Raises:
            MissingModelError: A model is not there in any version.
            ServingError: There is no such version, or the server does not answer.
        """
        return self._retried(lambda seconds: self._find_version(networks, seconds))

    def call(
        self,
        network: str,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        version: int,
    ) -> dict[str, np.ndarray]:
        """Calls a signature; see `serving.client.Models`."""
        return self._retried(
            lambda seconds: self._call(network, signature, inputs, outputs, version, seconds)
        )

    def free_memory_bytes(self) -> int:
        """The memory that is assumed free; see `SERVERS_MEMORY_BYTES`."""
        return SERVERS_MEMORY_BYTES

    @abc.abstractmethod
    def encode(self, images: np.ndarray, version: int) -> np.ndarray:
        """Latents, float32 [B, h, w, 4], of pictures uint8 [B, H, W, 3]."""

    @abc.abstractmethod
    def decode(self, latent: np.ndarray, version: int) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3]."""

    @abc.abstractmethod
    def _available(self, network: str, seconds: float) -> tuple[set[int], set[int]]:
        """The versions of a model that can be used, and those that are still loading."""

    @abc.abstractmethod
    def _call(
        self,
        network: str,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        version: int,
        seconds: float,
    ) -> dict[str, np.ndarray]:
        """Makes a call once; raises BusyError if it may be repeated."""

    def _find_version(self, networks: Sequence[str], seconds: float) -> int:
        found = {network: self._available(network, seconds) for network in networks}
        common = set.intersection(*(ready for ready, _ in found.values()))
        if self._pinned is not None:
            common &= {self._pinned}
        if common:
            return max(common)
        wanted = "version" if self._pinned is None else f"version {self._pinned}"
        serves = "; ".join(
            f"{network}: {', '.join(map(str, sorted(ready))) or 'none'}"
            for network, (ready, _) in found.items()
        )
        problem = f"{self._address} has no {wanted} of all {_NUMBERS[len(found)]} models ({serves})"
        if any(loading for _, loading in found.values()):
            raise BusyError(f"{problem}; it is still loading some")
        raise VersionGoneError(problem)

    def _retried(self, call: Callable[[float], _Result]) -> _Result:
        deadline = time.monotonic() + self._timeout_seconds
        wait = _FIRST_WAIT_SECONDS
        for attempt in range(self._retries + 1):
            try:
                return call(max(0.001, deadline - time.monotonic()))
            except BusyError as error:
                # Random, or all clients that were turned away would come back at once.
                pause = wait * random.uniform(0.5, 1.5)
                if attempt == self._retries or time.monotonic() + pause > deadline:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    raise ServingError(f"{error} (after {tries})") from error
                logger.info("%s; trying again in %.1f s.", error, pause)
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        raise AssertionError("unreachable")

    def _too_slow(self) -> ServingError:
        return ServingError(
            f"{self._address} took longer than {self._timeout_seconds:g} s; ask for fewer steps or "
            "allow more time"
        )

    def _unreachable(self, reason: str) -> BusyError:
        return BusyError(f"{self._address} does not answer: {reason}")

    def _no_model(self, network: str) -> MissingModelError:
        return MissingModelError(
            network,
            f"{self._address} has no model {network}; start it with "
            "--model_config_file=SERVING_DIR/models.config",
        )

    def _refused(self, network: str, reason: str) -> ServingError:
        kind = ServingError
        for special, words in (
            (MissingSignatureError, _NO_SIGNATURE),
            (RowsNeededError, _ROWS_NEEDED),
        ):
            if words.match(reason):
                kind = special
        return kind(f"{self._address} refuses the request to {network}: {reason}")
