"""The requests that TensorFlow Serving makes to a version before serving it.

The first request to a signature is slow, because TensorFlow then optimizes its graph. TensorFlow
Serving replays `assets.extra/tf_serving_warmup_requests` while it loads a version, so that no user
has to wait for this.
"""

from __future__ import annotations

import os
import tempfile

import tensorflow as tf
from google.protobuf import message
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
from tfx.dsl.io import fileio

from serving.request import DEFAULT_SAMPLER
from serving.serving_directory import ModelRefusedError
from trainer.presets import LATENT_CHANNELS, LATENT_DOWNSAMPLING

_PROMPT = b"a drawing of a small round creature"
# Inputs for which zero does not work.
_VALUES = {
    "num_steps": 1,
    "guidance_scale": 7.5,
    "sampler": DEFAULT_SAMPLER,
    "strength": 1.0,
    "mask_bytes": b"",
}
# Signatures that clients hardly ever use unless requests are batched.
_OF_ROWS = ("rows", "rows_from_image", "size_of_rows")
_INITIALIZER = "__saved_model_init_op"


def warmup_requests(
    saved_model: str, network: str, image_size: int, *, in_batches: bool = False
) -> bytes:
    """One request for one picture for every signature in use, as TFRecords of PredictionLogs.

    Args:
        saved_model: Folder of the SavedModel.
        network: Name of the model on servers.
        image_size: Side of the picture in pixels, if a signature accepts any.
        in_batches: Whether servers batch requests. They then refuse signatures that do not have
            one row per picture in every input, also in a warm-up.

    Raises:
        ModelRefusedError: It is not a SavedModel, or servers could not batch requests to it.
    """
    try:
        with fileio.open(os.path.join(saved_model, "saved_model.pb"), "rb") as f:
            [graph] = saved_model_pb2.SavedModel.FromString(f.read()).meta_graphs
    except (message.DecodeError, ValueError, tf.errors.NotFoundError, OSError) as error:
        raise ModelRefusedError(f"the {network} is not a SavedModel ({error})") from error
    if in_batches and network == "diffusion_model" and _OF_ROWS[0] not in graph.signature_def:
        raise ModelRefusedError(
            f"the {network} was exported by a former version, so requests to it cannot be "
            "batched: set serving.batch_size to 1, or train it again"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "requests")
        with tf.io.TFRecordWriter(path) as writer:
            for name, signature in sorted(graph.signature_def.items()):
                unused = not _has_rows(signature) if in_batches else name in _OF_ROWS
                if name == _INITIALIZER or unused:
                    continue
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(name=network, signature_name=name)
                )
                for key, tensor in signature.inputs.items():
                    request.inputs[key].CopyFrom(
                        tf.make_tensor_proto(_value(key, tensor, image_size))
                    )
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString(deterministic=True))
        with open(path, "rb") as f:
            return f.read()


def _has_rows(signature: meta_graph_pb2.SignatureDef) -> bool:
    """Whether the first dimension of all inputs is open."""
    shapes = [tensor.tensor_shape.dim for tensor in signature.inputs.values()]
    return all(dims and dims[0].size < 0 for dims in shapes)


def _value(name: str, tensor: tf.compat.v1.TensorInfo, image_size: int) -> tf.Tensor:
    dtype = tf.dtypes.as_dtype(tensor.dtype)
    if name in ("image", "image_bytes"):
        return tf.io.encode_png(tf.zeros([image_size, image_size, 3], tf.uint8))[None]
    if name == "latent_bytes":
        side = image_size // LATENT_DOWNSAMPLING
        return tf.io.serialize_tensor(tf.zeros([side, side, LATENT_CHANNELS]))[None]
    # Pictures and masks are sized in pixels, latents and noise in positions; texts and contexts
    # only have an open number of rows.
    side = image_size if dtype == tf.uint8 else image_size // LATENT_DOWNSAMPLING
    open_dims = (1, side, side)
    shape = [
        open_dims[place] if dim.size < 0 else dim.size
        for place, dim in enumerate(tensor.tensor_shape.dim)
    ]
    value = _VALUES.get(name, _PROMPT if dtype == tf.string else 0)
    return tf.fill(shape, tf.cast(value, dtype))
