"""TensorFlow Serving's protocol over real SavedModels: REST and gRPC, on two free ports.

The real server is a C++ program that no package brings. This one takes its `models.config` and
polls it, replays warm-up requests, changes one model after another and never leaves one without a
version, lets calls under way end, and answers as it does: the messages are those of
tensorflow-serving-api, and JSON follows its rules (columns in and out, a single output without its
name, `b64` for names that end in `_bytes` and plain text for others, floats with as many digits as
they need). With `batch_threads`, it draws together as the server does with `--enable_batching` and
`--enable_per_model_batching_parameters`; see `tf_serving_batches.py`.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2
from tf_serving_batches import Batches, check_rows

State = get_model_status_pb2.ModelVersionStatus.State
_PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]+))?:predict")
# What releases have since requests can be drawn together.
ROWS = frozenset({"rows", "rows_from_image", "size_of_rows"})
_STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]+))?")


class Refusal(Exception):
    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


_HTTP_STATUS = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class _Servable:
    """One version of one model."""

    def __init__(self) -> None:
        self.state = State.LOADING
        self.model: Any = None
        self.batches: Batches | None = None
        self.in_use = 0


class TfServing:
    """Serves what a `models.config` names until the `with` block ends.

    Attributes:
        rest, grpc: The two addresses.
        calls: How many calls were answered with a result.
        most_at_once: How many were being computed at once at most.
        batch_sizes: How many rows each batch had, without what filled it up.
    """

    def __init__(
        self, config: Path, *, poll_seconds: float = 0.02, batch_threads: int | None = None
    ) -> None:
        self._config = config
        self.batch_sizes: list[int] = []
        self._batch_pool = futures.ThreadPoolExecutor(batch_threads) if batch_threads else None
        self._poll_seconds = poll_seconds
        self._most_calls: int | None = None
        self._unknown: frozenset[str] = frozenset()
        self._absent: str | None = None
        self._models: dict[str, dict[int, _Servable]] = {}
        self._lock = threading.Condition()
        self._stop = threading.Event()
        self.calls = self.most_at_once = self._running = 0
        self._text = ""
        self._reload()
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(32),
            options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions(self), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(self), self._grpc)
        self.grpc = f"grpc://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.serving = self
        self.rest = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> TfServing:
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._poller.join()
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()
        if self._batch_pool is not None:
            self._batch_pool.shutdown()

    def serves(self, version: int, timeout: float = 400.0) -> bool:
        """Waits until a version is the newest one of all models."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with self._lock:
                ready = [
                    [v for v, s in versions.items() if s.state == State.AVAILABLE]
                    for versions in self._models.values()
                ]
            if ready and all(max(versions, default=0) == version for versions in ready):
                return True
            time.sleep(0.01)
        return False

    def status(self, model: str) -> dict[int, int]:
        with self._lock:
            if model not in self._models or model == self._absent:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {model}"
                )
            return {version: s.state for version, s in self._models[model].items()}

    def signature(self, model: str, version: int | None, name: str) -> Any:
        """For the types of a signature's inputs."""
        with self._used(model, version) as servable:
            return self._signature(
                servable,
                name,
                grpc.StatusCode.INVALID_ARGUMENT,
                'Serving signature name: "{}" not found in signature def',
            )

    def predict(
        self, model: str, version: int | None, signature: str, inputs: dict[str, tf.Tensor]
    ) -> tuple[int, dict[str, tf.Tensor]]:
        with self._used(model, version) as servable, self._counted():
            function = self._signature(
                servable,
                signature,
                grpc.StatusCode.FAILED_PRECONDITION,
                'Serving signature key "{}" not found.',
            )
            try:
                if servable.batches is None:
                    outputs = function(**inputs)
                else:
                    outputs = servable.batches.run(signature, function, inputs)
            except tf.errors.InvalidArgumentError as error:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error
            except (TypeError, ValueError) as error:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
            except tf.errors.FailedPreconditionError as error:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, error.message) from error
            number = next(v for v, s in self._models[model].items() if s is servable)
        self.calls += 1
        return number, outputs

    def _signature(
        self, servable: _Servable, name: str, code: grpc.StatusCode, message: str
    ) -> Any:
        name = name or "serving_default"
        if name not in servable.model.signatures or name in self._unknown:
            raise Refusal(code, message.format(name))
        return servable.model.signatures[name]

    @contextlib.contextmanager
    def of_former_version(self, *unknown: str) -> Iterator[None]:
        """Serves models as they were before they had these signatures."""
        self._unknown = frozenset(unknown) | ROWS
        try:
            yield
        finally:
            self._unknown = frozenset()

    @contextlib.contextmanager
    def without(self, model: str) -> Iterator[None]:
        """Serves all but a model."""
        self._absent = model
        try:
            yield
        finally:
            self._absent = None

    @contextlib.contextmanager
    def full_with(self, most_calls: int) -> Iterator[None]:
        """Refuses what comes while so many calls are being computed."""
        self._most_calls, self.most_at_once = most_calls, 0
        try:
            yield
        finally:
            self._most_calls = None

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            if self._most_calls is not None and self._running >= self._most_calls:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests")
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    @contextlib.contextmanager
    def _used(self, model: str, version: int | None) -> Iterator[_Servable]:
        with self._lock:
            ready = {
                v: s for v, s in self._models.get(model, {}).items() if s.state == State.AVAILABLE
            }
            wanted = max(ready, default=None) if version is None else version
            if wanted not in ready:
                which = "Latest" if version is None else "Specific"
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND,
                    f"Servable not found for request: {which}({model}, {version})",
                )
            servable = ready[wanted]
            servable.in_use += 1
        try:
            yield servable
        finally:
            with self._lock:
                servable.in_use -= 1
                self._lock.notify_all()

    def _load(self, versions: dict[int, _Servable], wanted: set[int], base_path: str) -> None:
        with self._lock:
            added = {v: _Servable() for v in wanted if v not in versions}
            versions.update(added)
        for version, servable in added.items():
            folder = Path(base_path) / str(version)
            if self._batch_pool is not None:
                servable.batches = Batches.of(folder, self._batch_pool, self.batch_sizes)
            servable.model = _loaded(folder, in_batches=servable.batches is not None)
            servable.state = State.AVAILABLE

    def _unload(self, versions: dict[int, _Servable], wanted: set[int], base_path: str) -> None:
        with self._lock:
            for version in set(versions) - wanted:
                servable = versions[version]
                servable.state = State.UNLOADING
                self._lock.wait_for(lambda servable=servable: servable.in_use == 0)
                servable.model = None
                del versions[version]
        gc.collect()

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self._reload()

    def _reload(self) -> None:
        text = self._config.read_text()
        if text == self._text:
            return
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        for model in config.model_config_list.config:
            assert model.base_path.startswith("/"), "TensorFlow Serving wants absolute paths"
            wanted = set(model.model_version_policy.specific.versions)
            with self._lock:
                versions = self._models.setdefault(model.name, {})
                keeps = any(version in wanted for version in versions)
            # As its policy does that preserves availability: what goes makes room for what comes.
            steps = (self._unload, self._load) if keeps else (self._load, self._unload)
            for step in steps:
                step(versions, wanted, model.base_path)
        self._text = text


def _loaded(folder: Path, *, in_batches: bool) -> Any:
    model = tf.saved_model.load(str(folder))
    warmup = folder / "assets.extra" / "tf_serving_warmup_requests"
    if warmup.exists():
        for record in tf.data.TFRecordDataset(str(warmup)):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
            if in_batches:
                check_rows(inputs)
            model.signatures[request.model_spec.signature_name](**inputs)
    return model


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, serving: TfServing) -> None:
        self._serving = serving

    def Predict(self, request, context):  # noqa: N802
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        try:
            inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
            version, outputs = self._serving.predict(
                spec.name, version, spec.signature_name, inputs
            )
        except Refusal as refusal:
            context.abort(refusal.code, str(refusal))
        answer = predict_pb2.PredictResponse()
        answer.model_spec.CopyFrom(spec)
        answer.model_spec.version.value = version
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return answer


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, serving: TfServing) -> None:
        self._serving = serving

    def GetModelStatus(self, request, context):  # noqa: N802
        try:
            found = self._serving.status(request.model_spec.name)
        except Refusal as refusal:
            context.abort(refusal.code, str(refusal))
        answer = get_model_status_pb2.GetModelStatusResponse()
        for version, state in found.items():
            answer.model_version_status.add(version=version, state=state)
        return answer


class _HttpServer(ThreadingHTTPServer):
    serving: TfServing
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        match = _STATUS.fullmatch(self.path)
        self._answer(lambda: self._status(match[1]) if match else self._unknown())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match = _PREDICT.fullmatch(self.path)
        self._answer(lambda: self._predict(match, body) if match else self._unknown())

    def _unknown(self) -> Any:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: {self.command} {self.path}"
        )

    def _status(self, model: str) -> Any:
        found = self.server.serving.status(model)
        entries = [
            {
                "version": str(version),
                "state": State.Name(state),
                "status": {"error_code": "OK", "error_message": ""},
            }
            for version, state in found.items()
        ]
        return {"model_version_status": entries}

    def _predict(self, match: re.Match[str], body: bytes) -> Any:
        model, version = match[1], int(match[2]) if match[2] else None
        content = json.loads(body)
        name = content.get("signature_name", "")
        signature = self.server.serving.signature(model, version, name)
        specs = signature.structured_input_signature[1]
        try:
            inputs = {
                key: tf.constant(_parsed(value), specs[key].dtype)
                for key, value in content["inputs"].items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"JSON Value: {error}") from error
        _, outputs = self.server.serving.predict(model, version, name, inputs)
        written = {key: _written(key, value.numpy()) for key, value in outputs.items()}
        return {"outputs": written if len(written) > 1 else next(iter(written.values()))}

    def _answer(self, respond: Any) -> None:
        try:
            status, content = 200, respond()
        except Refusal as refusal:
            status, content = _HTTP_STATUS[refusal.code], {"error": str(refusal)}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _parsed(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_parsed(entry) for entry in value] if isinstance(value, list) else value


def _written(name: str, value: np.ndarray) -> Any:
    if value.dtype == object:
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(text).decode()} for text in value]
        # Bytes that are no text make the real server's answer unreadable, too.
        return [text.decode("latin-1") for text in value]
    if value.dtype == np.float32:
        # Nine digits tell every float32 from its neighbours.
        rounded = [float(f"{number:.9g}") for number in value.ravel()]
        return np.array(rounded).reshape(value.shape).tolist()
    return value.tolist()
