"""The models that are scored: exported ones as they will be served, or the base weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from trainer.presets import Preset

MANIFEST_NAME = "manifest.json"

Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""From noisy latent, timesteps int32 [B] and context to epsilon, all float32."""

Encode = Callable[[tf.Tensor], tf.Tensor]
"""From tokens, int [B, 77], to the context float32 [B, 77, D]."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an exported model says of itself.

    Attributes:
        preset: Name of the preset.
        image_size: Side of its pictures in pixels.
        text_encoder_trained: Whether its text encoder is another than that of the base weights.
    """

    preset: str
    image_size: int
    text_encoder_trained: bool

    def fits(self, preset: str, image_size: int) -> bool:
        """Whether models of this preset and size can be compared with it."""
        return (self.preset, self.image_size) == (preset, image_size)

    @classmethod
    def read(cls, serving: str) -> Manifest | None:
        """Reads it from the folder of the SavedModels; `None` where there is none."""
        path = os.path.join(serving, MANIFEST_NAME)
        if not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path, "r") as f:
            manifest = json.loads(f.read())
        return cls(
            manifest["preset"],
            manifest["image_size"],
            bool(manifest.get("text_encoder_trained", False)),
        )


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A loaded model.

    Attributes:
        predict: Its diffusion model.
        encode: Its own text encoder, if that was trained; `None` where the contexts in the latents
            are those that it gives.
    """

    predict: Predict
    encode: Encode | None = None

    def contexts(self, tokens: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Contexts float32 [B, 77, D] of captions; `stored` are those of the base weights."""
        if self.encode is None:
            return stored
        contexts: np.ndarray = self.encode(tf.constant(tokens, tf.int32)).numpy()
        return contexts


def exported_model(serving: str) -> ScoredModel:
    """Loads an exported model."""
    manifest = Manifest.read(serving)
    trained = manifest is not None and manifest.text_encoder_trained
    signature = _signature(serving, "diffusion_model", "predict_epsilon")

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        return signature(latent=latent, timesteps=timesteps, context=context)["epsilon"]

    return ScoredModel(predict, exported_text_encoder(serving) if trained else None)


def base_model(preset: Preset, image_size: int, base_weights: str) -> ScoredModel:
    """Builds the base model."""
    # Import Keras.
    from trainer.diffusion.noise_schedule import timestep_embedding
    from trainer.networks import build_diffusion_model
    from trainer.weights.load import load_base_weights

    model = build_diffusion_model(preset, image_size)
    load_base_weights(model, "diffusion_model", preset, base_weights)
    width = preset.diffusion_model.timestep_width

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, width)
        return tf.cast(model([latent, embedding, context], training=False), tf.float32)

    return ScoredModel(predict)


def frozen_text_encoder(
    exported: Sequence[str | None], preset: Preset, base_weights: str
) -> Encode:
    """The base weights' text encoder, out of the first model that has it, or built."""
    for serving in exported:
        manifest = Manifest.read(serving) if serving else None
        if serving and manifest and not manifest.text_encoder_trained:
            return exported_text_encoder(serving)
    # Import Keras.
    from trainer.networks import build_text_encoder
    from trainer.weights.load import load_base_weights

    model = build_text_encoder(preset)
    load_base_weights(model, "text_encoder", preset, base_weights)

    def encode(tokens: tf.Tensor) -> tf.Tensor:
        positions = tf.broadcast_to(tf.range(tf.shape(tokens)[1]), tf.shape(tokens))
        return tf.cast(model([tokens, positions], training=False), tf.float32)

    return encode


def exported_text_encoder(serving: str) -> Encode:
    """An exported model's text encoder."""
    signature = _signature(serving, "text_encoder", "serving_default")
    return lambda tokens: signature(tokens=tokens)["context"]


def exported_decoder(serving: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """An exported model's decoder: latents float32 [B, h, w, 4] to uint8 [B, H, W, 3]."""
    signature = _signature(serving, "decoder", "serving_default")
    return lambda latent: signature(latent=latent)["generated_images"]


def _signature(serving: str, network: str, name: str) -> Callable[..., dict[str, tf.Tensor]]:
    model = tf.saved_model.load(os.path.join(serving, network))
    signature = model.signatures[name]

    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        # The loaded object owns the variables that its signatures only borrow.
        assert model is not None
        outputs: dict[str, tf.Tensor] = signature(**inputs)
        return outputs

    return call
