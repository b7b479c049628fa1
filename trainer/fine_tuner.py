"""One training step, the loop around it, and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer.latents import sample_posterior
from trainer.noise_schedule import NUM_TIMESTEPS, add_noise, timestep_embedding
from trainer.optimizer import AveragedAdamW
from trainer.presets import Preset
from trainer.training_config import ResolvedTrainingConfig

HISTORY_NAME = "history.jsonl"
_CHECKPOINTS_KEPT = 2

Batch = dict[str, tf.Tensor]

logger = logging.getLogger(__name__)


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What is logged: averages over the steps since the last record.

    Attributes:
        step: Optimizer steps done.
        loss: Mean squared error of the predicted noise.
        learning_rate: Of the last of those steps.
        gradient_norm: Global norm before clipping.
        images_per_second: Of those steps.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float


def learning_rate_at(config: ResolvedTrainingConfig, step: tf.Tensor) -> tf.Tensor:
    """Linear warm-up from zero, then constant, or linear or cosine decay to zero.

    Args:
        config: Hyperparameters.
        step: int [], optimizer steps done before this one.

    Returns:
        float32 [].
    """
    step = tf.cast(step, tf.float32)
    decay_steps = max(1, config.steps - config.warmup_steps)
    progress = tf.clip_by_value((step - config.warmup_steps) / decay_steps, 0.0, 1.0)
    factor = {
        "constant": tf.ones_like(progress),
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + tf.cos(np.pi * progress)),
    }[config.learning_rate_schedule]
    warm_up = tf.minimum(1.0, (step + 1.0) / max(1, config.warmup_steps))
    return config.learning_rate * warm_up * factor


class FineTuner:
    """Trains a diffusion model, and a text encoder with it if one is given.

    Everything random in a step is drawn from the seed and the step's number, so that a resumed
    run takes the same steps as one that was never stopped.
    """

    def __init__(
        self,
        diffusion_model: keras.Model,
        preset: Preset,
        config: ResolvedTrainingConfig,
        *,
        empty_caption: tf.Tensor,
        text_encoder: keras.Model | None = None,
    ) -> None:
        """Creates the optimizer and the average of the weights.

        Args:
            diffusion_model: From `trainer.models.build_diffusion_model`.
            preset: What it was built from.
            config: Hyperparameters.
            empty_caption: What a dropped caption becomes: float32 [77, D], the empty caption's
                context; with a text encoder int32 [77], its tokens.
            text_encoder: Trained along, from the batches' `tokens`; if absent, the batches'
                `context` is used.
        """
        self.diffusion_model = diffusion_model
        self.text_encoder = text_encoder
        self.config = config
        self._preset = preset
        self._empty_caption = empty_caption
        self.variables: list[keras.Variable] = [
            *diffusion_model.trainable_variables,
            *(text_encoder.trainable_variables if text_encoder else ()),
        ]
        self.optimizer = AveragedAdamW(
            [v.value for v in self.variables],
            weight_decay=config.weight_decay,
            ema_decay=config.ema_decay,
        )
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._step_function = tf.function(self._train_step, autograph=False)

    def loss(self, batch: Batch, step: tf.Tensor) -> tf.Tensor:
        """Noise-prediction loss (Ho et al. 2020, equation 14), float32 [].

        Args:
            batch: From `trainer.latents.training_batches`.
            step: int64 [], decides timesteps, noise and dropped captions.
        """
        mean = batch["latent/mean"]
        size = tf.shape(mean)[0]
        key = tf.random.experimental.stateless_fold_in(
            tf.constant([self.config.seed, 0], tf.int64), step
        )
        time_key, noise_key, posterior_key, dropout_key, flip_key = tf.unstack(
            tf.random.split(key, 5)
        )
        log_variance = batch["latent/log_variance"]
        if "latent/mirror_mean" in batch:
            mirrored = tf.random.stateless_uniform([size, 1, 1, 1], flip_key) < 0.5
            mean = tf.where(mirrored, batch["latent/mirror_mean"], mean)
            log_variance = tf.where(mirrored, batch["latent/mirror_log_variance"], log_variance)
        latent = sample_posterior(
            mean, log_variance, tf.random.stateless_normal(tf.shape(mean), posterior_key)
        )
        timesteps = tf.random.stateless_uniform([size], time_key, 0, NUM_TIMESTEPS, tf.int32)
        epsilon = tf.random.stateless_normal(tf.shape(latent), noise_key)
        dropped = tf.random.stateless_uniform([size, 1], dropout_key) < self.config.caption_dropout
        context = self._context(batch, dropped)
        predicted = self.diffusion_model(
            [
                add_noise(latent, epsilon, timesteps),
                timestep_embedding(timesteps, self._preset.diffusion_model.timestep_width),
                context,
            ],
            training=True,
        )
        return tf.reduce_mean(tf.square(epsilon - tf.cast(predicted, tf.float32)))

    def _context(self, batch: Batch, dropped: tf.Tensor) -> tf.Tensor:
        if self.text_encoder is None:
            return tf.where(dropped[..., None], self._empty_caption[None], batch["context"])
        tokens = tf.cast(batch["tokens"], tf.int32)
        tokens = tf.where(dropped, self._empty_caption[None], tokens)
        positions = tf.broadcast_to(tf.range(tf.shape(tokens)[1])[None], tf.shape(tokens))
        return self.text_encoder([tokens, positions], training=True)

    def _train_step(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = self.loss(batch, self.step)
        gradients = tape.gradient(loss, [v.value for v in self.variables])
        gradients, norm = tf.clip_by_global_norm(gradients, self.config.max_gradient_norm)
        learning_rate = learning_rate_at(self.config, self.step)
        self.optimizer.apply(gradients, learning_rate, self.step.assign_add(1))
        return loss, norm

    def train_step(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """One optimizer step; returns the loss and the gradients' global norm, float32 [] each."""
        return self._step_function(batch)

    def assign_averages(self) -> None:
        """Makes the averaged weights the models' weights."""
        for average, variable in zip(self.optimizer.averages, self.variables, strict=True):
            variable.assign(average)

    def train(
        self,
        batches_from: Callable[[int], Iterator[Batch]],
        folder: str,
        on_record: Callable[[StepRecord], None] = lambda record: None,
    ) -> list[StepRecord]:
        """Trains up to the configured number of steps, from the last checkpoint in `folder`.

        Args:
            batches_from: Gives the endless batches that follow the given number of steps.
            folder: Where checkpoints and `history.jsonl` are kept; a run that was stopped goes on
                from here.
            on_record: Called with every record as it is made.

        Returns:
            All records, those from before a resume too.

        Raises:
            TrainingDivergedError: The loss is infinite or not a number.
        """
        config = self.config
        checkpoint = tf.train.Checkpoint(
            variables=[v.value for v in self.variables],
            first_moments=self.optimizer.first_moments,
            second_moments=self.optimizer.second_moments,
            averages=self.optimizer.averages,
            step=self.step,
        )
        manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=_CHECKPOINTS_KEPT)
        if manager.latest_checkpoint:
            checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        first_step = int(self.step)
        history = [r for r in read_history(folder) if r.step <= first_step]
        if first_step:
            logger.info("Resuming at step %d of %d.", first_step, config.steps)
        if first_step >= config.steps:
            return history

        batches = batches_from(first_step)
        losses: list[tf.Tensor] = []
        norms: list[tf.Tensor] = []
        since = time.monotonic()
        for step in range(first_step + 1, config.steps + 1):
            loss, norm = self.train_step(next(batches))
            losses.append(loss)
            norms.append(norm)
            if step % config.log_every_steps == 0 or step == config.steps:
                record = StepRecord(
                    step=step,
                    loss=float(np.mean(losses)),
                    learning_rate=float(learning_rate_at(config, step - 1)),
                    gradient_norm=float(np.mean(norms)),
                    images_per_second=len(losses) * config.batch_size / (time.monotonic() - since),
                )
                if not np.isfinite(record.loss):
                    raise TrainingDivergedError(
                        f"the loss became {record.loss} within the {len(losses)} steps before step "
                        f"{step}; the last good checkpoint is {manager.latest_checkpoint}. Try a "
                        f"lower learning rate than {config.learning_rate}"
                    )
                history.append(record)
                on_record(record)
                losses, norms, since = [], [], time.monotonic()
            if step % config.checkpoint_every_steps == 0 or step == config.steps:
                # History first: a checkpoint must never know more steps than the history.
                write_history(history, folder)
                manager.save(checkpoint_number=step)
        return history


def read_history(folder: str) -> list[StepRecord]:
    """The records in `<folder>/history.jsonl`; none where there is no such file."""
    path = os.path.join(folder, HISTORY_NAME)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "r") as f:
        return [StepRecord(**json.loads(line)) for line in f if line.strip()]


def write_history(history: list[StepRecord], folder: str) -> None:
    """Writes `<folder>/history.jsonl`, whole or not at all."""
    tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, HISTORY_NAME)
    with tf.io.gfile.GFile(path + ".partial", "w") as f:
        f.write("".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in history))
    tf.io.gfile.rename(path + ".partial", path, overwrite=True)
