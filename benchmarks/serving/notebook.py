"""The way of a published notebook (keras-sd-serving): tokens in, two calls of the model per step.

Rebuilt from its description, with the arithmetic of 20 steps, at which its timesteps and noise
levels match.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.serving.measured import (
    GUIDANCE_SCALE,
    NUM_STEPS,
    PROMPT,
    Draw,
    arguments,
    measure,
)
from trainer.diffusion.noise_schedule import alphas_cumprod, timestep_embedding
from trainer.presets import Preset
from trainer.text.tokenizer import tokenize


def export_notebook_models(
    folder: Path, networks: Mapping[str, keras.Model], preset: Preset, image_size: int
) -> None:
    """Writes its three SavedModels."""
    text_encoder, diffusion_model, decoder = (
        networks[name] for name in ("text_encoder", "diffusion_model", "decoder")
    )
    empty = tf.constant(tokenize([""]))
    latent_shape = preset.latent_shape(image_size)
    alphas = tf.constant(alphas_cumprod())
    width = preset.diffusion_model.timestep_width

    @tf.function(input_signature=[tf.TensorSpec([None, 77], tf.int32, name="tokens")])
    def encode(tokens):
        context = text_encoder(tokens, training=False)
        unconditional = text_encoder(empty, training=False)
        unconditional = tf.repeat(unconditional, tf.shape(tokens)[0], axis=0)
        return {"context": context, "unconditional_context": unconditional}

    context_spec = [None, 77, preset.text_encoder.width]

    @tf.function(
        input_signature=[
            tf.TensorSpec(context_spec, tf.float32, name="context"),
            tf.TensorSpec(context_spec, tf.float32, name="unconditional_context"),
            tf.TensorSpec([], tf.int32, name="num_steps"),
        ]
    )
    def sample(context, unconditional_context, num_steps):
        timesteps = tf.range(1, 1000, 1000 // num_steps)
        count = tf.shape(context)[0]
        levels = tf.gather(alphas, timesteps)
        previous = tf.concat([[1.0], levels[:-1]], axis=0)
        latent = tf.random.normal([count, *latent_shape])
        index = num_steps - 1
        for timestep in tf.reverse(timesteps, [0]):
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(latent, tf.TensorShape([None, *latent_shape]))]
            )
            embedding = timestep_embedding(tf.fill([count], timestep), width)
            unconditional = diffusion_model(
                [latent, embedding, unconditional_context], training=False
            )
            conditional = diffusion_model([latent, embedding, context], training=False)
            epsilon = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            level, before = levels[index], previous[index]
            predicted = (latent - tf.sqrt(1.0 - level) * epsilon) / tf.sqrt(level)
            latent = epsilon * tf.sqrt(1.0 - before) + tf.sqrt(before) * predicted
            index -= 1
        return {"latent": latent}

    @tf.function(input_signature=[tf.TensorSpec([None, *latent_shape], tf.float32, name="latent")])
    def decode(latent):
        image = (decoder(latent, training=False) + 1.0) * 127.5
        return {"generated_images": tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)}

    for name, function in (("text_encoder", encode), ("diffusion_model", sample)):
        tf.saved_model.save(networks[name], str(folder / name), signatures=function)
    tf.saved_model.save(decoder, str(folder / "decoder"), signatures=decode)


def main() -> None:
    """The command line."""
    given = arguments()

    def load() -> Draw:
        models = {
            name: tf.saved_model.load(str(given.folder / "notebook" / name))
            for name in ("text_encoder", "diffusion_model", "decoder")
        }
        encode, sample, decode = (m.signatures["serving_default"] for m in models.values())

        def draw(count: int) -> np.ndarray:
            # In the notebook, the client tokenizes.
            contexts = encode(tokens=tf.constant(tokenize([PROMPT] * count)))
            latent = sample(**contexts, num_steps=tf.constant(NUM_STEPS))
            return decode(**latent)["generated_images"].numpy()

        # Keeps the models, which own what their signatures borrow.
        draw.models = models  # type: ignore[attr-defined]
        return draw

    measure(load, given.image_size, given.pictures)


if __name__ == "__main__":
    main()
