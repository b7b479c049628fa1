"""The models on TensorFlow Serving, over its REST interface; needs no local TensorFlow.

https://www.tensorflow.org/tfx/serving/api_rest describes the interface.
"""

from __future__ import annotations

import base64
import json
import netrc
import os
from collections.abc import Mapping
from typing import Any

import httpx2
import numpy as np

from serving import png
from serving.errors import BusyError, ServingError, VersionGoneError
from serving.remote import RemoteModels

_NOT_NOW = frozenset({429, 502, 503, 504})
_LONGEST_REASON = 500


class RestModels(RemoteModels):
    """Talks to `http://HOST:8501` or an `https://` address, which may have a path."""

    def __init__(
        self, address: str, version: int | None, timeout_seconds: float, retries: int
    ) -> None:
        """See `RemoteModels`."""
        super().__init__(address.rstrip("/"), version, timeout_seconds, retries)
        # Proxies are not meant for the machines named here; as many connections as needed.
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.Client(limits=limits, auth=_from_netrc())

    def encode(self, images: np.ndarray, version: int) -> np.ndarray:
        """Latents, float32 [B, h, w, 4], of pictures that are sent as PNG files."""
        files = np.array([png.encode(pixels) for pixels in images], object)
        outputs = ("latent",)
        [latent] = self.call("image_encoder", "png", {"image": files}, outputs, version).values()
        return latent

    def decode(self, latent: np.ndarray, version: int) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3], which are received as PNG files."""
        inputs, outputs = {"latent": latent}, ("image_bytes",)
        [files] = self.call("decoder", "png_bytes", inputs, outputs, version).values()
        return np.stack([png.decode(contents) for contents in files])

    def _available(self, network: str, seconds: float) -> tuple[set[int], set[int]]:
        status, content = self._ask("GET", f"/v1/models/{network}", None, seconds)
        if status == 404:
            raise self._no_model(network)
        ready: set[int] = set()
        loading: set[int] = set()
        for entry in self._checked(network, status, content).get("model_version_status", []):
            if entry["state"] == "AVAILABLE":
                ready.add(int(entry["version"]))
            elif entry["state"] in ("START", "LOADING"):
                loading.add(int(entry["version"]))
        return ready, loading

    def _call(
        self,
        network: str,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        version: int,
        seconds: float,
    ) -> dict[str, np.ndarray]:
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(value) for name, value in inputs.items()},
        }
        path = f"/v1/models/{network}/versions/{version}:predict"
        status, content = self._ask("POST", path, body, seconds)
        found: Any = self._checked(network, status, content).get("outputs")
        # A single output comes without its name.
        if len(outputs) == 1:
            found = {outputs[0]: found}
        try:
            return {name: _from_json(name, found[name]) for name in outputs}
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(
                f"{self._address} answers with other outputs than {', '.join(outputs)}; did the "
                f"pipeline push this {network}?"
            ) from error

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> tuple[int, Any]:
        try:
            content = None if body is None else json.dumps(body).encode()
            answer = self._http.request(
                method, self._address + path, content=content, timeout=seconds
            )
        except httpx2.ConnectTimeout as error:
            raise self._unreachable("the connection takes too long") from error
        except httpx2.TimeoutException as error:
            raise self._too_slow() from error
        except httpx2.TransportError as error:
            raise self._unreachable(str(error) or type(error).__name__) from error
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise ServingError(f"{self._address} is not a valid address: {error}") from error
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, None

    def _checked(self, network: str, status: int, content: Any) -> dict[str, Any]:
        if status == 200 and isinstance(content, dict):
            return content
        known = isinstance(content, dict) and "error" in content
        reason = str(content["error"])[:_LONGEST_REASON] if known else f"status {status}"
        if status in _NOT_NOW:
            raise BusyError(f"{self._address} cannot answer now: {reason}")
        if not known:
            raise ServingError(
                f"what answers at {self._address} is not TensorFlow Serving's REST interface "
                f"(status {status}); its default port is 8501"
            )
        if status == 404:
            raise VersionGoneError(f"{self._address} no longer has this version: {reason}")
        raise self._refused(network, reason)


def _from_netrc() -> httpx2.Auth | None:
    """Users and passwords of servers, from `.netrc` or the file that NETRC names."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return httpx2.NetRCAuth(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServingError(f"{path} cannot be read: {error.strerror}") from None
    except netrc.NetrcParseError as error:
        # Its message shows words of the file.
        raise ServingError(f"line {error.lineno} of {path} is not valid in a netrc file") from None


def _to_json(value: np.ndarray) -> Any:
    if value.dtype == object:
        return _encoded(value.tolist())
    return value.tolist()


def _encoded(texts: Any) -> Any:
    if isinstance(texts, list):
        return [_encoded(text) for text in texts]
    return {"b64": base64.b64encode(texts).decode()}


def _from_json(name: str, value: Any) -> np.ndarray:
    # Only outputs whose name ends like this are encoded.
    if name.endswith("_bytes"):
        return np.array([base64.b64decode(entry["b64"]) for entry in value], object)
    return np.array(value, np.float32)
