"""The models to score: exported models as they will be served, or the base weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import tensorflow as tf

from storage.model_manifest import ModelManifest
from trainer.presets import prediction_signature
from trainer.text.new_word import NewWord

if TYPE_CHECKING:
    from trainer.diffusion.noise_schedule import NoiseSchedule
    from trainer.presets import Prediction
    from trainer.weights.base_model import BaseModel

Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""From noisy latent, whole timesteps (int32 or float32 [B]) and context to the prediction."""

Encode = Callable[[tf.Tensor], tf.Tensor]
"""From tokens, int [B, 77], to the context float32 [B, 77, D]."""


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A loaded model.

    Attributes:
        predict: Its diffusion model.
        schedule: Its noise schedule and kind of prediction.
        encode: Its own text encoder, if that was trained; `None` if the contexts stored in the
            latents are the ones it would give.
    """

    predict: Predict
    schedule: NoiseSchedule
    encode: Encode | None = None

    def contexts(self, tokens: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Contexts float32 [B, 77, D] of captions; `stored` comes from the base weights."""
        if self.encode is None:
            return stored
        contexts: np.ndarray = self.encode(tf.constant(tokens, tf.int32)).numpy()
        return contexts


def exported_model(serving: str, word: NewWord | None = None) -> ScoredModel:
    """Loads an exported model.

    Args:
        serving: Folder of the model.
        word: New word that captions may contain. A model that does not know it sees its initial
            word instead.
    """
    # Imports Keras.
    from trainer.diffusion.noise_schedule import NoiseSchedule

    manifest = ModelManifest.read(serving)
    prediction = cast("Prediction", manifest.prediction)
    schedule = NoiseSchedule(prediction, manifest.zero_terminal_snr)
    signature = _signature(serving, "diffusion_model", prediction_signature(prediction))

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        whole = tf.cast(timesteps, tf.int32)
        return signature(latent=latent, timesteps=whole, context=context)[prediction]

    encode = exported_text_encoder(serving) if manifest.text_encoder_trained else None
    own = NewWord.of_fields(manifest.word)
    knows = own and word and (own.token, own.vectors) == (word.token, word.vectors)
    if encode is not None and word is not None and not knows:
        encode = _with_initial(encode, word)
    return ScoredModel(predict, schedule, encode)


def _with_initial(encode: Encode, word: NewWord) -> Encode:
    return lambda tokens: encode(tf.constant(word.as_initial(np.asarray(tokens)), tf.int32))


def loaded_base_model(base_model: BaseModel, in_buckets: bool = False) -> ScoredModel:
    """Builds the base model.

    Args:
        base_model: The weights and the size of the pictures.
        in_buckets: Whether the prediction is traced once for latents of all shapes, with the same
            results up to rounding, and not for one shape.
    """
    # Import Keras.
    from trainer.diffusion.noise_schedule import NoiseSchedule, timestep_embedding
    from trainer.networks.inference_layers import inference_layers

    model = base_model.build("diffusion_model")
    width = base_model.preset.diffusion_model.timestep_width
    # Its layers are replaced while it is traced, and several threads trace it.
    tracing = threading.Lock()

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, width)
        with tracing, inference_layers(model) if in_buckets else contextlib.nullcontext():
            predicted = model([latent, embedding, context], training=False)
        return tf.cast(predicted, tf.float32)

    return ScoredModel(predict, NoiseSchedule.of(base_model.preset))


def frozen_text_encoder(exported: Sequence[str | None], base_model: BaseModel) -> Encode:
    """The text encoder of the base weights, from the first model that has it, or built."""
    for serving in exported:
        if serving and not ModelManifest.read(serving).text_encoder_trained:
            return exported_text_encoder(serving)
    model = base_model.build("text_encoder")

    def encode(tokens: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tokens, training=False), tf.float32)

    return encode


def exported_text_encoder(serving: str) -> Encode:
    """The text encoder of an exported model."""
    signature = _signature(serving, "text_encoder", "serving_default")
    return lambda tokens: signature(tokens=tokens)["context"]


def exported_decoder(serving: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """The decoder of an exported model: latents float32 [B, h, w, 4] to uint8 [B, H, W, 3]."""
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
