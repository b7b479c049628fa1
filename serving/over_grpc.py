"""The models on TensorFlow Serving, over gRPC, with the stubs of tensorflow-serving-api."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import numpy as np

from serving.errors import BusyError, ServingError, VersionGoneError
from serving.remote import RemoteModels
from storage.greetings import no_greetings

with no_greetings():
    import tensorflow as tf
    from tensorflow_serving.apis import (
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

_State = get_model_status_pb2.ModelVersionStatus.State
_NOT_NOW = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})


class GrpcModels(RemoteModels):
    """Talks to `grpc://HOST:8500`, or over TLS to `grpcs://HOST:PORT`."""

    def __init__(
        self, address: str, version: int | None, timeout_seconds: float, retries: int
    ) -> None:
        """See `RemoteModels`."""
        super().__init__(address, version, timeout_seconds, retries)
        scheme, _, target = address.rstrip("/").partition("://")
        # The pictures of a large batch exceed the 4 MB that gRPC allows by default.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
            if scheme == "grpcs"
            else grpc.insecure_channel(target, options)
        )
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._status = model_service_pb2_grpc.ModelServiceStub(channel)

    def encode(self, images: np.ndarray, version: int) -> np.ndarray:
        """Latents, float32 [B, h, w, 4]."""
        inputs, outputs = {"images": images}, ("latent",)
        [latent] = self.call("image_encoder", "serving_default", inputs, outputs, version).values()
        return latent

    def decode(self, latent: np.ndarray, version: int) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3]."""
        inputs, outputs = {"latent": latent}, ("generated_images",)
        [images] = self.call("decoder", "serving_default", inputs, outputs, version).values()
        return images

    def _available(self, network: str, seconds: float) -> tuple[set[int], set[int]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = network
        try:
            answer = self._status.GetModelStatus(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise self._no_model(network) from error
            raise self._translated(network, error) from error
        ready: set[int] = set()
        loading: set[int] = set()
        for entry in answer.model_version_status:
            if entry.state == _State.AVAILABLE:
                ready.add(entry.version)
            elif entry.state in (_State.START, _State.LOADING):
                loading.add(entry.version)
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
        request = predict_pb2.PredictRequest()
        request.model_spec.name = network
        request.model_spec.signature_name = signature
        request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            answer = self._predictions.Predict(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._translated(network, error) from error
        missing = [name for name in outputs if name not in answer.outputs]
        if missing:
            raise ServingError(
                f"the {network} of {self._address} does not return {', '.join(missing)}; did the "
                "pipeline push it?"
            )
        return {name: tf.make_ndarray(answer.outputs[name]) for name in outputs}

    def _translated(self, network: str, error: grpc.RpcError) -> ServingError:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._too_slow()
        if code == grpc.StatusCode.NOT_FOUND:
            return VersionGoneError(f"{self._address} no longer has this version: {details}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return ServingError(
                f"what answers at {self._address} is not TensorFlow Serving's gRPC interface; its "
                "default port is 8500"
            )
        if code in _NOT_NOW:
            return BusyError(f"{self._address} cannot answer now: {details}")
        return self._refused(network, f"{details} ({code.name})")
