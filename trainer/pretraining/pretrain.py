"""Trains the base weights of a preset: `python -m trainer.pretrain --out FOLDER`.

First the KL autoencoder (Rombach et al. 2022, section 3.1), then the text encoder and the diffusion
model together on its latents, from random or existing weights. The pictures come from
`trainer.pretraining.shapes`: simple shapes and objects, without the creatures that the default run
fine-tunes on. Both stages are seeded, and resume from their last checkpoint when the command is run
again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.data.latents import sample_posterior
from trainer.diffusion.noise_schedule import (
    LATENT_SCALE,
    NUM_TIMESTEPS,
    NoiseSchedule,
    timestep_embedding,
)
from trainer.presets import LATENT_CHANNELS, LATENT_DOWNSAMPLING, Preset, get_preset
from trainer.pretraining import shapes
from trainer.text.tokenizer import tokenize
from trainer.training.checkpoints import RunCheckpoints
from trainer.training.fine_tuner import Batch, FineTuner, StepRecord
from trainer.training_config import TrainingConfig
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError
from trainer.weights.load import save_weights_file, write_hashes

_KL_WEIGHT = 1e-6
_COLOUR_WEIGHT = 1.0
_HELD_OUT = 512
_HELD_OUT_SEED_OFFSET = 1_000_003
_CHECKPOINT_EVERY = 250
_ENCODING_BATCH = 64

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """The settings of the command line; see its help."""

    preset: str
    out: str
    work_dir: str
    start: str
    pictures: int
    autoencoder_steps: int
    autoencoder_batch_size: int
    diffusion_steps: int
    diffusion_batch_size: int
    learning_rate: float
    min_snr_gamma: float
    seed: int


class AutoencoderTrainer:
    """Trains image encoder and decoder: absolute and squared error, and a small KL term."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model, config: PretrainConfig) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self._config = config
        self.variables = [*encoder.trainable_variables, *decoder.trainable_variables]
        schedule = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=config.autoencoder_steps,
            warmup_target=config.learning_rate,
            warmup_steps=min(100, config.autoencoder_steps // 2),
        )
        self.optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
        self.optimizer.build(self.variables)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._step_function = tf.function(self._train_step, autograph=False)

    def _train_step(self, images: tf.Tensor) -> tf.Tensor:
        target = tf.cast(images, tf.float32) / 127.5 - 1.0
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(self.encoder(target, training=True), 2, axis=-1)
            noise = tf.random.stateless_normal(
                tf.shape(mean), tf.stack([tf.constant(self._config.seed, tf.int64), self.step])
            )
            latent = sample_posterior(mean, log_variance, noise)
            error = self.decoder(latent, training=True) - target
            # Kullback-Leibler divergence from the standard normal (Kingma and Welling 2014,
            # appendix B).
            divergence = 0.5 * tf.reduce_mean(
                tf.reduce_sum(
                    tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance, axis=[1, 2, 3]
                )
            )
            # Errors that cancel within a cell of the latent are slightly displaced lines; others
            # are a wrong colour, which people notice first.
            cells = tf.nn.avg_pool2d(error, LATENT_DOWNSAMPLING, LATENT_DOWNSAMPLING, "VALID")
            loss = tf.reduce_mean(tf.abs(error)) + tf.reduce_mean(tf.square(error))
            loss += _COLOUR_WEIGHT * tf.reduce_mean(tf.abs(cells)) + _KL_WEIGHT * divergence
        gradients = tape.gradient(loss, [v.value for v in self.variables])
        self.optimizer.apply(gradients, self.variables)
        self.step.assign_add(1)
        return loss

    def train(self, images: np.ndarray, folder: str) -> None:
        """Trains on uint8 [N, H, W, 3] from the last checkpoint in `folder`."""
        checkpoints = RunCheckpoints(
            folder,
            kept=2,
            variables=[v.value for v in self.variables],
            optimizer=[v.value for v in self.optimizer.variables],
            step=self.step,
        )
        checkpoints.restore()
        config = self._config
        losses: list[float] = []
        for step in range(int(self.step) + 1, config.autoencoder_steps + 1):
            rows = np.random.default_rng([config.seed, step]).integers(
                len(images), size=config.autoencoder_batch_size
            )
            losses.append(float(self._step_function(tf.constant(images[rows]))))
            if step % 50 == 0:
                logger.info("autoencoder step %d: loss %.4f", step, np.mean(losses))
                losses = []
            if step % _CHECKPOINT_EVERY == 0 or step == config.autoencoder_steps:
                checkpoints.save(step)


def standardize_latents(encoder: keras.Model, decoder: keras.Model, images: np.ndarray) -> None:
    """Rescales both halves so that scaled latents have mean 0 and variance 1 in each channel.

    The last layer of the encoder and the first of the decoder are 1 x 1 convolutions, so this does
    not change the results of the autoencoder. It makes `LATENT_SCALE`, which was measured for
    Stable Diffusion's own autoencoder, right for this one.
    """
    mean = encode(encoder, images)[..., :LATENT_CHANNELS]
    centre = mean.mean(axis=(0, 1, 2))
    factor = 1.0 / (LATENT_SCALE * mean.std(axis=(0, 1, 2)))

    kernel, bias = (np.asarray(v) for v in encoder.layers[-1].weights)
    scale = np.concatenate([factor, np.ones(LATENT_CHANNELS)])
    shift = np.concatenate([-centre * factor, 2.0 * np.log(factor)])
    encoder.layers[-1].set_weights([kernel * scale, bias * scale + shift])

    first = next(layer for layer in decoder.layers if layer.weights)
    kernel, bias = (np.asarray(v) for v in first.weights)
    first.set_weights([kernel / factor[:, None], bias + centre @ kernel[0, 0]])


def encode(encoder: keras.Model, images: np.ndarray) -> np.ndarray:
    """Moments, float32 [N, h, w, 8], from pictures, uint8 [N, H, W, 3]."""
    encoder_function = tf.function(lambda x: encoder(x, training=False), autograph=False)
    return np.concatenate(
        [
            encoder_function(tf.constant(images[i : i + _ENCODING_BATCH], tf.float32) / 127.5 - 1.0)
            for i in range(0, len(images), _ENCODING_BATCH)
        ]
    )


def reconstruction_error(
    encoder: keras.Model, decoder: keras.Model, images: np.ndarray
) -> dict[str, float]:
    """Mean absolute error and peak signal-to-noise ratio (dB) over pixel values in [0, 255]."""
    means = encode(encoder, images)[..., :LATENT_CHANNELS]
    decode = tf.function(lambda latent: decoder(latent, training=False), autograph=False)
    decoded = np.concatenate(
        [
            decode(tf.constant(LATENT_SCALE * means[i : i + _ENCODING_BATCH]))
            for i in range(0, len(means), _ENCODING_BATCH)
        ]
    )
    error = np.clip((decoded + 1.0) * 127.5, 0, 255) - images
    return {
        "mean_absolute_error": float(np.abs(error).mean()),
        "psnr_db": float(10 * np.log10(255.0**2 / np.square(error).mean())),
    }


def held_out_loss(
    tuner: FineTuner, preset: Preset, moments: np.ndarray, tokens: np.ndarray, seed: int
) -> float:
    """Noise-prediction loss over ten evenly spread timesteps per picture, with fixed noise."""
    assert tuner.text_encoder is not None
    schedule = NoiseSchedule.of(preset)
    rng = np.random.default_rng(seed)
    text_encoder = tuner.text_encoder

    @functools.partial(tf.function, autograph=False)
    def predict(noisy: tf.Tensor, timesteps: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, preset.diffusion_model.timestep_width)
        context = text_encoder(tokens, training=False)
        return tuner.diffusion_model([noisy, embedding, context], training=False)

    losses = []
    for stratum in range(10):
        low = stratum * NUM_TIMESTEPS // 10
        for i in range(0, len(moments), _ENCODING_BATCH):
            part = slice(i, i + _ENCODING_BATCH)
            mean, log_variance = np.split(moments[part], 2, axis=-1)
            noise = rng.standard_normal((2, *mean.shape)).astype(np.float32)
            timesteps = rng.integers(low, low + NUM_TIMESTEPS // 10, len(mean)).astype(np.int32)
            latent = sample_posterior(mean, log_variance, noise[0])
            predicted = predict(
                schedule.add_noise(latent, noise[1], timesteps),
                tf.constant(timesteps),
                tf.constant(tokens[part]),
            )
            target = schedule.target(latent, noise[1], timesteps)
            losses.append(np.square(target - predicted).mean(axis=(1, 2, 3)))
    return float(np.concatenate(losses).mean())


def pretrain(config: PretrainConfig) -> dict[str, object]:
    """Trains, writes the weight files, and returns the measurements."""
    since = time.monotonic()
    preset = get_preset(config.preset)
    base_model = BaseModel.locate(preset, preset.image_size, config.start)
    if base_model.preset.numerics != "keras_cv":
        raise WeightsError(
            f"the weights in {config.start!r} are for diffusers' layers, but this command writes "
            "weights for KerasCV's layers: start from such weights"
        )
    logger.info("drawing %d pictures", config.pictures + _HELD_OUT)
    images, captions = shapes.generate(config.pictures, config.seed, preset.image_size)
    held_images, held_captions = shapes.generate(
        _HELD_OUT, config.seed + _HELD_OUT_SEED_OFFSET, preset.image_size
    )

    encoder, decoder = _train_autoencoder(config, base_model, images)
    _save(config, preset, image_encoder=encoder, decoder=decoder)
    reconstruction = reconstruction_error(encoder, decoder, held_images)
    logger.info("held-out reconstruction: %s", reconstruction)

    batches_from = _shuffled(config, encode(encoder, images), tokenize(captions))
    text_encoder, tuner = _diffusion_tuner(config, base_model)
    tuner.train(batches_from, os.path.join(config.work_dir, "diffusion"), _log_record)
    tuner.assign_averages()
    _save(config, preset, text_encoder=text_encoder, diffusion_model=tuner.diffusion_model)
    write_hashes(config.out)

    measured = {
        "reconstruction": reconstruction,
        "held_out_loss": held_out_loss(
            tuner, preset, encode(encoder, held_images), tokenize(held_captions), config.seed
        ),
        "minutes_of_this_command": round((time.monotonic() - since) / 60, 1),
    }
    return _record(config, measured)


def _train_autoencoder(
    config: PretrainConfig, base_model: BaseModel, images: np.ndarray
) -> tuple[keras.Model, keras.Model]:
    """The image encoder and the decoder."""
    encoder, decoder = base_model.build("image_encoder"), base_model.build("decoder")
    if config.autoencoder_steps:
        autoencoder = AutoencoderTrainer(encoder, decoder, config)
        autoencoder.train(images, os.path.join(config.work_dir, "autoencoder"))
        standardize_latents(encoder, decoder, images[:4096])
    return encoder, decoder


def _diffusion_tuner(
    config: PretrainConfig, base_model: BaseModel
) -> tuple[keras.Model, FineTuner]:
    """The text encoder, and the tuner that trains it together with the diffusion model."""
    preset = base_model.preset
    text_encoder, diffusion_model = map(base_model.build, ("text_encoder", "diffusion_model"))
    tuner = FineTuner(
        diffusion_model,
        preset,
        TrainingConfig(
            steps=config.diffusion_steps,
            batch_size=config.diffusion_batch_size,
            learning_rate=config.learning_rate,
            learning_rate_schedule="cosine",
            warmup_steps=min(200, config.diffusion_steps // 2),
            ema_decay=0.999,
            train_text_encoder=True,
            min_snr_gamma=config.min_snr_gamma,
            seed=config.seed,
            checkpoint_every_steps=_CHECKPOINT_EVERY,
            log_every_steps=50,
        ).resolved(preset),
        empty_caption=tf.constant(tokenize([""])[0]),
        text_encoder=text_encoder,
    )
    return text_encoder, tuner


def _shuffled(
    config: PretrainConfig, moments: np.ndarray, tokens: np.ndarray
) -> Callable[[int], Iterator[Batch]]:
    """The batches after a number of steps: random, but the same for the same step."""

    def batches_from(first_step: int) -> Iterator[Batch]:
        for step in itertools.count(first_step):
            rows = np.random.default_rng([config.seed, step]).integers(
                len(moments), size=config.diffusion_batch_size
            )
            mean, log_variance = np.split(moments[rows], 2, axis=-1)
            yield {
                "tokens": tf.constant(tokens[rows]),
                "latent/mean": tf.constant(mean),
                "latent/log_variance": tf.constant(log_variance),
            }

    return batches_from


def _log_record(record: StepRecord) -> None:
    logger.info(
        "diffusion step %d: loss %.4f, gradient norm %.2f, %.0f images/s",
        record.step,
        record.loss,
        record.gradient_norm,
        record.images_per_second,
    )


def _save(config: PretrainConfig, preset: Preset, **networks: keras.Model) -> None:
    os.makedirs(config.out, exist_ok=True)
    for network, model in networks.items():
        save_weights_file(model, os.path.join(config.out, preset.weight_files[network].name))


def _record(config: PretrainConfig, measured: Mapping[str, object]) -> dict[str, object]:
    """Writes settings and measurements next to the weights, and returns them."""
    facts = {**dataclasses.asdict(config), **measured}
    for machine_path in ("out", "work_dir", "start"):
        del facts[machine_path]
    Path(config.out, "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    logger.info("done: %s", facts)
    return facts
