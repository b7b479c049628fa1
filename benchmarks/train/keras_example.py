"""The training step of the Keras example "Fine-tuning Stable Diffusion"; prints one line of JSON.

Rewritten for Keras 3, on which the published code does not run. A step does the same: it runs the
image and text encoders, embeds timesteps one by one, clips every gradient by its own norm, and
updates with Keras' AdamW. The networks are KerasCV's own, unchanged.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf
from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModel
from keras_cv.src.models.stable_diffusion.image_encoder import ImageEncoder
from keras_cv.src.models.stable_diffusion.text_encoder import TextEncoder

from benchmarks.train.measured import (
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Timer,
    arguments_of,
)
from trainer.diffusion.noise_schedule import alphas_cumprod

_MAX_LENGTH = 77


def main() -> None:
    """The command line."""
    arguments = arguments_of(__doc__).parse_args()
    size, batch = arguments.image_size, arguments.batch_size
    timer = Timer()
    with timer.building():
        model = DiffusionModel(size, size, _MAX_LENGTH, download_weights=False)
    text_encoder = TextEncoder(_MAX_LENGTH, download_weights=False)
    encoder = ImageEncoder(download_weights=False)
    # The last layer reduces the moments to the mean.
    moments_of = keras.Sequential(encoder.layers[:-1])
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    optimizer.build(model.trainable_variables)
    alphas = tf.constant(alphas_cumprod(), tf.float32)
    images = tf.random.stateless_uniform((batch, size, size, 3), [0, 1], -1.0, 1.0)
    tokens = tf.zeros((batch, _MAX_LENGTH), tf.int32)
    positions = tf.tile(tf.range(_MAX_LENGTH)[None], [batch, 1])

    def embedding(timestep: tf.Tensor) -> tf.Tensor:
        frequencies = tf.exp(-math.log(10000) * tf.range(160, dtype=tf.float32) / 160)
        angles = tf.cast(timestep, tf.float32) * frequencies
        return tf.concat([tf.cos(angles), tf.sin(angles)], 0)

    def noisy_batch() -> tuple[list[tf.Tensor], tf.Tensor]:
        mean, log_variance = tf.split(moments_of(images, training=False), 2, axis=-1)
        noise = tf.random.normal(tf.shape(mean))
        latents = (mean + tf.exp(0.5 * log_variance) * noise) * 0.18215
        context = text_encoder([tokens, positions], training=False)
        timesteps = tf.random.uniform((batch,), 0, 1000, tf.int32)
        epsilon = tf.random.normal(tf.shape(latents))
        alpha = tf.gather(alphas, timesteps)[:, None, None, None]
        noisy = tf.sqrt(alpha) * latents + tf.sqrt(1 - alpha) * epsilon
        embedded = tf.map_fn(embedding, timesteps, fn_output_signature=tf.float32)
        return [noisy, embedded, context], epsilon

    @tf.function
    def step() -> tf.Tensor:
        inputs, epsilon = noisy_batch()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(epsilon - model(inputs, training=True)))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        gradients = [tf.clip_by_norm(gradient, CLIP_NORM) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    @tf.function
    def forward(noisy: tf.Tensor, embedded: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(model([noisy, embedded, context], training=True))

    with timer.building():
        step.get_concrete_function()
    inputs = noisy_batch()[0]
    timer.measure(lambda: float(step()), lambda: float(forward(*inputs)), arguments.steps)


if __name__ == "__main__":
    main()
