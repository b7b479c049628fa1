"""Draws a picture with SavedModels, in a process that only imports TensorFlow.

    python canary.py <folder with the SavedModels> <image size>

If there is an image encoder, a second picture is drawn from the first.

The last line on stdout is `{"problem": null}`, or the problem instead of `null`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import tensorflow as tf

_NUM_STEPS = 2
_PROMPT = "a drawing of a small round creature"
_LATENT_DOWNSAMPLING = 8
_LATENT_CHANNELS = 4
_IMAGE_ENCODER = "image_encoder"


def problem(folder: str, image_size: int) -> str | None:
    """Returns what is wrong with the models in `folder`; None if they draw a picture."""
    models = {}
    networks = ["text_encoder", "diffusion_model", "decoder"]
    if tf.io.gfile.isdir(os.path.join(folder, _IMAGE_ENCODER)):
        networks.append(_IMAGE_ENCODER)
    for network in networks:
        try:
            models[network] = tf.saved_model.load(os.path.join(folder, network))
        except Exception as error:
            return f"the {network} cannot be loaded: {_first_line(error)}"
    try:
        contexts = models["text_encoder"].signatures["text"](
            prompt=tf.constant([_PROMPT]), negative_prompt=tf.constant([""])
        )
        request = {
            "context": contexts["context"],
            "unconditional_context": contexts["unconditional_context"],
            "num_steps": tf.constant(_NUM_STEPS),
            "guidance_scale": tf.constant(7.5),
            "seed": tf.constant([0, 0]),
        }
        latent = models["diffusion_model"].signatures["serving_default"](**request)["latent"]
        images = models["decoder"].signatures["serving_default"](latent=latent)["generated_images"]
    except Exception as error:
        return f"drawing a picture fails: {_first_line(error)}"

    side = image_size // _LATENT_DOWNSAMPLING
    expected = {
        "latent": (latent, (1, side, side, _LATENT_CHANNELS)),
        "picture": (images, (1, image_size, image_size, 3)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            return f"the {name} has the shape {tuple(tensor.shape)}, expected {shape}"
    for name, tensor in (*contexts.items(), ("latent", latent)):
        if not np.isfinite(tensor.numpy()).all():
            return f"the {name} has values that are not finite numbers"
    if images.dtype != tf.uint8:
        return f"the picture is of type {images.dtype.name}, expected uint8"
    if np.ptp(images.numpy()) == 0:
        return "all pixels of the picture are the same"
    if _IMAGE_ENCODER in models and (found := _problem_with_picture(models, request, images)):
        return found
    return _warmup_problem(folder, models)


def _problem_with_picture(
    models: dict[str, Any], request: dict[str, tf.Tensor], images: tf.Tensor
) -> str | None:
    """Returns what is wrong with drawing from a picture; None if nothing is."""
    try:
        encoded = models[_IMAGE_ENCODER].signatures["serving_default"](images=images)["latent"]
        latent = models["diffusion_model"].signatures["from_image"](
            **request,
            sampler=tf.constant("ddim"),
            latent=encoded,
            strength=tf.constant(0.5),
        )["latent"]
    except Exception as error:
        return f"drawing from a picture fails: {_first_line(error)}"
    for name, tensor in (("picture's latent", encoded), ("latent drawn from it", latent)):
        if not np.isfinite(tensor.numpy()).all():
            return f"the {name} has values that are not finite numbers"
    return None


def _warmup_problem(folder: str, models: dict[str, Any]) -> str | None:
    """Makes the warm-up requests of TensorFlow Serving; if one fails, it does not load a model."""
    from tensorflow_serving.apis import prediction_log_pb2

    for network, model in models.items():
        path = os.path.join(folder, network, "assets.extra", "tf_serving_warmup_requests")
        if not tf.io.gfile.exists(path):
            continue
        for record in tf.data.TFRecordDataset(path):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            name = request.model_spec.signature_name
            inputs = {
                key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()
            }
            try:
                model.signatures[name](**inputs)
            except Exception as error:
                return f"the warm-up of {network}'s {name} fails: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    print(json.dumps({"problem": problem(sys.argv[1], int(sys.argv[2]))}), flush=True)
