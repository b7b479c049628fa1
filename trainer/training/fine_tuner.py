"""One training step, the loop around it, and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from storage.user_errors import UserError
from trainer.data.latents import sample_posterior
from trainer.data.prior import PRIOR, own_features, prior_features
from trainer.data.whole_files import write_whole
from trainer.diffusion.noise_schedule import NUM_TIMESTEPS, NoiseSchedule, timestep_embedding
from trainer.networks.any_size import call_at_any_size
from trainer.networks.matrix_products import convolutions_as_matrix_products
from trainer.networks.recompute import call_recomputing
from trainer.presets import Preset
from trainer.text.new_word import NewWord
from trainer.training.checkpoints import KeptWeights, RunCheckpoints, StartingPoint
from trainer.training.distribution import assign_here, is_chief, wait_for_all, worker_count
from trainer.training.evaluations import Evaluation, Evaluations, ScoredPictures
from trainer.training.interruption import StopRequest, TrainingInterruptedError
from trainer.training.lora import (
    LowRankAdapters,
    diffusion_model_projections,
    text_encoder_projections,
)
from trainer.training.new_vectors import NewVectors
from trainer.training.optimizer import averaged_optimizer
from trainer.training.precision import LossScale, computing_in, on_this_machine
from trainer.training_config import ResolvedTrainingConfig

HISTORY_NAME = "history.jsonl"
_IDS_SHOWN = 64
# Random streams: class pictures do not use the random numbers of the other pictures.
_OWN_STREAM, _PRIOR_STREAM = 0, 1

Batch = dict[str, tf.Tensor]
_ARITHMETIC = "arithmetic_optimization"

logger = logging.getLogger(__name__)


class TrainingDivergedError(UserError):
    """The loss or its gradient is no longer finite."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """A log record: averages over the steps since the last record.

    Attributes:
        step: Optimizer steps done.
        loss: Mean squared error of the prediction.
        learning_rate: Learning rate of the last of those steps.
        gradient_norm: Global norm before clipping.
        images_per_second: Throughput of those steps.
        loss_scale: In float16, after the last of those steps; otherwise 1.
        prior_loss: Mean squared error on class pictures, before weighting; `None` if there are
            none.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    loss_scale: float = 1.0
    prior_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class RandomValues:
    """The random values of a step, for each of its examples.

    Attributes:
        timesteps: int32 [B].
        noise: float32 [B, h, w, 4].
        posterior: float32 [B, h, w, 4], noise with which the latent is drawn.
        dropped: bool [B, 1], whether the caption is dropped.
        mirrored: bool [B, 1, 1, 1], whether the picture is mirrored.
        variant: int32 [B], variant of the caption.
    """

    timesteps: tf.Tensor
    noise: tf.Tensor
    posterior: tf.Tensor
    dropped: tf.Tensor
    mirrored: tf.Tensor
    variant: tf.Tensor

    def rows(self, first: tf.Tensor | int, count: int) -> RandomValues:
        """The values of `count` examples from `first` on, a number or int32 []."""
        if isinstance(first, int) and first == 0 and count == self.timesteps.shape[0]:
            return self
        # Unlike indexing, `tf.slice` keeps the static shape.
        return RandomValues(
            *(
                tf.slice(x, [first, *([0] * (len(x.shape) - 1))], [count, *x.shape[1:]])
                for x in vars(self).values()
            )
        )


def learning_rate_at(
    config: ResolvedTrainingConfig, step: tf.Tensor, highest: tf.Tensor | None = None
) -> tf.Tensor:
    """Linear warm-up from zero, then constant, or linear or cosine decay to zero.

    Args:
        config: Hyperparameters.
        step: int [], optimizer steps done before this one.
        highest: float32 [], the rate after warm-up; `None` for the rate of `config`.

    Returns:
        float32 [].
    """
    assert config.steps is not None
    assert config.warmup_steps is not None
    step = tf.cast(step, tf.float32)
    decay_steps = max(1, config.steps - config.warmup_steps)
    progress = tf.clip_by_value((step - config.warmup_steps) / decay_steps, 0.0, 1.0)
    factor = {
        "constant": tf.ones_like(progress),
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + tf.cos(np.pi * progress)),
    }[config.learning_rate_schedule]
    warm_up = tf.minimum(1.0, (step + 1.0) / max(1, config.warmup_steps))
    return (config.learning_rate if highest is None else highest) * warm_up * factor


def _num_variants(batch: Batch) -> int:
    """Number of caption variants that every example has.

    With one variant, tokens are [B, 77] and contexts [B, 77, D]; otherwise [B, V, 77] and
    [B, V, 77, D].
    """
    shape = batch["tokens"].shape if "tokens" in batch else batch["context"].shape[:-1]
    return shape[1] if len(shape) == 3 else 1


def _of_variant(batch: Batch, variant: tf.Tensor) -> Batch:
    """A batch with the chosen caption variant of each example, int32 [B]."""
    several = {name: batch[name] for name in ("tokens", "context") if name in batch}
    one: Batch = {
        name: tf.gather(values, variant, batch_dims=1) for name, values in several.items()
    }
    return {**batch, **one}


@contextlib.contextmanager
def _sums_as_they_are() -> Iterator[None]:
    """Functions that are first called within this keep the order of their additions.

    Otherwise TensorFlow's arithmetic optimizer turns every tree of additions into an AddN.
    """
    options = tf.config.optimizer.get_experimental_options()
    before = options.get(_ARITHMETIC, True)
    tf.config.optimizer.set_experimental_options({**options, _ARITHMETIC: False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({**options, _ARITHMETIC: before})


class FineTuner:
    """Trains a diffusion model, optionally with its text encoder; or only a word.

    Everything random in a step is drawn for the whole batch from the seed and the step number. So a
    resumed run takes the same steps as one that was never stopped, and a batch that is computed in
    parts or on several devices gives the same result as one that is computed at once.
    """

    def __init__(
        self,
        diffusion_model: keras.Model,
        preset: Preset,
        config: ResolvedTrainingConfig,
        *,
        empty_caption: tf.Tensor,
        text_encoder: keras.Model | None = None,
        adapters: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        word: NewWord | None = None,
        strategy: tf.distribute.Strategy | None = None,
        for_gpu: bool | None = None,
        prior_weight: float | None = None,
    ) -> None:
        """Creates the optimizer and the average of the weights.

        Args:
            diffusion_model: From `trainer.networks.build_diffusion_model`.
            preset: The preset that it was built from.
            config: Hyperparameters; the number of steps must be known.
            empty_caption: Replaces a dropped caption: the context of the empty caption, float32
                [77, D]; with a text encoder its tokens, int32 [77].
            text_encoder: Encodes the `tokens` of the batches, and is trained too if `config` says
                so; if absent, the `context` of the batches is used.
            adapters: `down` and `up` of adapters to continue, by name (see `LowRankAdapters`);
                all others start new.
            word: The word whose vectors are all that is trained; `text_encoder` has them.
            strategy: The strategy in whose scope the models were built; `None` for one device.
            for_gpu: Whether the step is traced for a GPU; by default, whether there is one here.
            prior_weight: Factor of the loss on class pictures, which are as many as the other
                pictures of a batch (see `trainer.data.prior`); `None` if there are none.

        Raises:
            UserError: The batch does not divide into parts and devices, or the optimizer only
                supports one device.
            ValueError: The text encoder is to be trained, but there is none.
        """
        if config.train_text_encoder and text_encoder is None:
            raise ValueError(
                "training.train_text_encoder is true, but no text encoder is given: give one, and "
                "batches with tokens, or set it to false"
            )
        config = on_this_machine(config)
        self.diffusion_model = diffusion_model
        self.text_encoder = text_encoder
        self.config = config
        self._schedule = NoiseSchedule.of(preset)
        self._preset = preset
        self._empty_caption = empty_caption
        self._strategy = strategy
        self._prior_weight = prior_weight
        self._for_gpu = bool(tf.config.list_logical_devices("GPU")) if for_gpu is None else for_gpu
        self._replicas = strategy.num_replicas_in_sync if strategy else 1
        self._rows = config.batch_size // (config.accumulation_steps * self._replicas)
        if self._rows * config.accumulation_steps * self._replicas != config.batch_size:
            raise UserError(
                f"training.batch_size = {config.batch_size} cannot be split evenly: set "
                f"--batch-size to a multiple of {config.accumulation_steps} "
                f"(training.accumulation_steps) times {self._replicas} (devices)"
            )
        if self._replicas > 1 and config.optimizer != "adamw":
            raise UserError(
                f"training.optimizer = {config.optimizer} supports only one device, and there are "
                f"{self._replicas}: set training.devices to one, or training.optimizer to adamw"
            )
        with strategy.scope() if strategy else contextlib.nullcontext():
            models = self._models if config.train_text_encoder else [diffusion_model]
            self.adapters = self._create_adapters(adapters or {}) if config.lora_rank else None
            self.new_vectors = None
            if word is not None:
                assert text_encoder is not None
                self.new_vectors = NewVectors(text_encoder, word)
            trained = (
                self._beside.variables
                if self._beside
                else [v for model in models for v in model.trainable_variables]
            )
            self.optimizer = averaged_optimizer(
                config.optimizer,
                trained,
                weight_decay=config.weight_decay,
                ema_decay=config.ema_decay,
            )
            self.variables: list[tf.Variable] = self.optimizer.trained
            self.loss_scale = LossScale() if config.precision == "float16" else None
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
            # A variable, so that another learning rate does not need another graph.
            self._learning_rate = tf.Variable(config.learning_rate, trainable=False)
            # The first step whose loss or gradients were not finite, and sums since the last
            # record. They stay on the device, which would have to wait if each step were read.
            self._bad_step = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._window = tf.Variable(tf.zeros(3 if prior_weight is None else 4), trainable=False)
            loss_shape = () if prior_weight is None else (2,)
            self._accumulated = [
                tf.Variable(tf.zeros(shape), trainable=False)
                for shape in [*(v.shape for v in self.variables), loss_shape]
                if config.accumulation_steps > 1
            ]
        jit_compile = config.xla == "on" or (config.xla == "auto" and self._for_gpu)
        # Collectives between devices must stay outside the code that XLA compiles.
        outer_jit = jit_compile and self._replicas == 1
        if jit_compile and not outer_jit:
            self._loss_and_gradients = tf.function(  # type: ignore[method-assign]
                self._loss_and_gradients, autograph=False, jit_compile=True
            )
            self._row_losses = tf.function(  # type: ignore[method-assign]
                self._row_losses, autograph=False, jit_compile=True
            )
        options: dict[str, Any] = {"autograph": False, "jit_compile": outer_jit or None}
        self._step_function = tf.function(self._train_step, **options)
        self._part_function = tf.function(self._accumulate, **options)
        self._update_function = tf.function(self._update_from_accumulated, **options)
        self._score_function = tf.function(self._score, **options)
        self._traced_gradients: list[tf.Tensor] = []

    @property
    def _beside(self) -> LowRankAdapters | NewVectors | None:
        """What is trained instead of the networks' own weights."""
        return self.new_vectors or self.adapters

    @property
    def _models(self) -> list[keras.Model]:
        return [self.diffusion_model, *([self.text_encoder] if self.text_encoder else [])]

    def _create_adapters(
        self, initial: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> LowRankAdapters:
        projections = diffusion_model_projections(self.diffusion_model)
        if self.text_encoder is not None and self.config.train_text_encoder:
            projections |= text_encoder_projections(self.text_encoder)
        return LowRankAdapters(
            projections,
            rank=self.config.lora_rank,
            alpha=self.config.lora_alpha,
            seed=self.config.seed,
            initial=initial,
        )

    def loss(self, batch: Batch, step: tf.Tensor, first_row: tf.Tensor | int = 0) -> tf.Tensor:
        """Loss of the prediction (Ho et al. 2020, equation 14), float32 [].

        With class pictures, their weighted loss is added (Ruiz et al. 2023, equation 2).

        Args:
            batch: From `trainer.data.latents.training_batches`, the whole batch or some rows of it.
            step: int64 [], decides timesteps, noise and dropped captions.
            first_row: Position of the given rows in the whole batch.

        Returns:
            The share of these rows in the loss of the whole batch: all shares add up to it.
        """
        return self._weighed(self._losses(batch, step, first_row))

    def _weighed(self, losses: tf.Tensor) -> tf.Tensor:
        """The value that is minimized, float32 [], from the result of `_losses`."""
        if self._prior_weight is None:
            return losses
        return losses[0] + self._prior_weight * losses[1]

    def _losses(self, batch: Batch, step: tf.Tensor, first_row: tf.Tensor | int) -> tf.Tensor:
        """Loss of some rows, float32 []; with class pictures, also their loss, float32 [2]."""
        noised = self._noised(own_features(batch), step, first_row, _OWN_STREAM)
        if self._prior_weight is not None:
            prior = self._noised(prior_features(batch), step, first_row, _PRIOR_STREAM)
            # Both go through the networks together, as one larger batch.
            noised = tuple(tf.concat(both, axis=0) for both in zip(noised, prior, strict=True))
        latent, noise, timesteps, captions = noised
        losses = self._errors(latent, noise, timesteps, self._encoded(captions))
        if self.config.min_snr_gamma:
            losses *= self._schedule.min_snr_weights(timesteps, self.config.min_snr_gamma)
        if self._prior_weight is None:
            return tf.reduce_sum(losses) / self.config.batch_size
        return tf.reduce_sum(tf.reshape(losses, [2, -1]), axis=1) / self.config.batch_size

    def _noised(
        self, batch: Batch, step: tf.Tensor, first_row: tf.Tensor | int, stream: int
    ) -> tuple[tf.Tensor, ...]:
        """Latents, noise, timesteps and captions (see `_captions`) of some rows."""
        mean = batch["latent/mean"]
        log_variance = batch["latent/log_variance"]
        variants = _num_variants(batch)
        random = self._random_values(step, mean.shape[1:], variants, stream)
        random = random.rows(first_row, mean.shape[0])
        if variants > 1:
            batch = _of_variant(batch, random.variant)
        if "latent/mirror_mean" in batch:
            mirrored = random.mirrored
            mean = tf.where(mirrored, batch["latent/mirror_mean"], mean)
            log_variance = tf.where(mirrored, batch["latent/mirror_log_variance"], log_variance)
        latent = sample_posterior(mean, log_variance, random.posterior)
        return latent, random.noise, random.timesteps, self._captions(batch, random.dropped)

    def _errors(
        self, latent: tf.Tensor, noise: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor
    ) -> tf.Tensor:
        """Mean squared error of the prediction for each row, float32 [B]."""
        inputs = [
            self._schedule.add_noise(latent, noise, timesteps),
            timestep_embedding(timesteps, self._preset.diffusion_model.timestep_width),
            context,
        ]
        predicted = tf.cast(self._call(self.diffusion_model, inputs), tf.float32)
        target = self._schedule.target(latent, noise, timesteps)
        return tf.reduce_mean(tf.square(target - predicted), axis=[1, 2, 3])

    def _random_values(
        self, step: tf.Tensor, latent_shape: tf.TensorShape, variants: int, stream: int
    ) -> RandomValues:
        config, size = self.config, self.config.batch_size
        shape = [size, *latent_shape]
        key = tf.random.experimental.stateless_fold_in(
            tf.constant([config.seed, stream], tf.int64), step
        )
        time_key, noise_key, posterior_key, dropout_key, flip_key = tf.unstack(
            tf.random.split(key, 5)
        )
        noise = tf.random.stateless_normal(shape, noise_key)
        if config.noise_offset:
            # A shift of whole channels, which plain noise hardly ever hides or requires
            # (Guttenberg 2023, "Diffusion with offset noise").
            offset_key = tf.random.experimental.stateless_fold_in(noise_key, 1)
            offset = tf.random.stateless_normal([size, 1, 1, shape[-1]], offset_key)
            noise += config.noise_offset * offset
        variant = tf.zeros([size], tf.int32)
        if variants > 1:
            variant_key = tf.random.experimental.stateless_fold_in(dropout_key, 1)
            variant = tf.random.stateless_uniform([size], variant_key, 0, variants, tf.int32)
        return RandomValues(
            variant=variant,
            timesteps=tf.random.stateless_uniform([size], time_key, 0, NUM_TIMESTEPS, tf.int32),
            noise=noise,
            posterior=tf.random.stateless_normal(shape, posterior_key),
            dropped=tf.random.stateless_uniform([size, 1], dropout_key) < config.caption_dropout,
            mirrored=tf.random.stateless_uniform([size, 1, 1, 1], flip_key) < 0.5,
        )

    def _context(self, batch: Batch, dropped: tf.Tensor) -> tf.Tensor:
        return self._encoded(self._captions(batch, dropped))

    def _captions(self, batch: Batch, dropped: tf.Tensor) -> tf.Tensor:
        """Contexts, float32 [B, 77, D]; with a text encoder, tokens, int32 [B, 77]."""
        if self.text_encoder is None:
            return tf.where(dropped[..., None], self._empty_caption[None], batch["context"])
        tokens = tf.cast(batch["tokens"], tf.int32)
        return tf.where(dropped, self._empty_caption[None], tokens)

    def _encoded(self, captions: tf.Tensor) -> tf.Tensor:
        """Contexts float32 [B, 77, D] of captions."""
        return captions if self.text_encoder is None else self._call(self.text_encoder, captions)

    def _call(self, model: keras.Model, inputs: tf.Tensor | list[tf.Tensor]) -> tf.Tensor:
        if self.config.gradient_checkpointing:
            return call_recomputing(model, inputs)
        return call_at_any_size(model, inputs, training=True)

    def _loss_and_gradients(
        self, batch: Batch, first_row: tf.Tensor | int
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """For some rows: their share in the losses of the whole batch, and its gradients."""
        with (
            computing_in(self.config.precision, self._models),
            convolutions_as_matrix_products(self._models, self._for_gpu),
        ):
            loss = self._losses(batch, self.step, first_row)
            weighed = self._weighed(loss)
            target = weighed if self.loss_scale is None else weighed * self.loss_scale.scale
            # A tape adds up gradients from several places with AddN, which begins with whichever
            # buffer can be overwritten: rounding would then depend on the other core.
            # `_sums_as_they_are` keeps TensorFlow from turning the additions into AddN again.
            gradients = tf.gradients(
                target, self.variables, aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE
            )
        # Embeddings only have gradients for the rows that were looked up.
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        self._traced_gradients = gradients
        return loss, gradients

    def _train_step(self, batch: Batch, stop: tf.Tensor | None = None) -> tuple[tf.Tensor, ...]:
        return self._in_replicas(
            lambda batch, stop: self._update(
                *self._loss_and_gradients(batch, self._own_row(0)), stop
            ),
            batch,
            stop,
        )

    def _accumulate(self, batch: Batch, first_row: tf.Tensor) -> None:
        def add(batch: Batch, first_row: tf.Tensor) -> None:
            loss, gradients = self._loss_and_gradients(batch, self._own_row(first_row))
            for total, value in zip(self._accumulated, [*gradients, loss], strict=True):
                tf.raw_ops.AssignAddVariableOp(resource=total.handle, value=value)

        self._in_replicas(add, batch, first_row)

    def _update_from_accumulated(self, stop: tf.Tensor | None = None) -> tuple[tf.Tensor, ...]:
        def update(stop: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
            *gradients, loss = [tf.identity(total) for total in self._accumulated]
            done = self._update(loss, gradients, stop)
            for total in self._accumulated:
                assign_here(total, tf.zeros(total.shape))
            return done

        return self._in_replicas(update, stop)

    def _own_row(self, first_row: tf.Tensor | int, rows: int | None = None) -> tf.Tensor | int:
        """Position in the whole batch of the rows of this replica, in the part at `first_row`."""
        if self._replicas == 1:
            return first_row
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return first_row + tf.cast(replica, tf.int32) * (rows or self._rows)

    def _row_losses(self, batch: Batch) -> tf.Tensor:
        """Loss of each row at its own timestep and noise, computed as in training; float32 [B]."""
        with (
            computing_in(self.config.precision, self._models),
            convolutions_as_matrix_products(self._models, self._for_gpu),
        ):
            latent = sample_posterior(
                batch["latent/mean"], batch["latent/log_variance"], batch["posterior"]
            )
            return self._errors(
                latent,
                batch["noise"],
                batch["timesteps"],
                self._context(batch, tf.constant([[False]])),
            )

    def _score(self, batch: Batch) -> tf.Tensor:
        def losses(batch: Batch) -> tf.Tensor:
            own = self._row_losses(batch)
            if self._replicas == 1:
                return own
            # Each replica fills its own places: a sum with zeros is exact, and the same for all.
            rows = own.shape[0]
            places = self._own_row(0, rows) + tf.range(rows)
            every = tf.scatter_nd(places[:, None], own, [rows * self._replicas])
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, every)

        return self._in_replicas(losses, batch)

    def score(self, pictures: ScoredPictures) -> np.ndarray:
        """The losses of all rows, float32 [pictures * strata], with the current weights.

        Under `tf.distribute`, every worker calls this and gets the same losses.
        """
        losses = np.zeros(pictures.num_rows, np.float32)
        for alike in pictures.rows_by_size():
            # In batches of equal size, or the last one would be mostly padding.
            number = math.ceil(len(alike) / (self._rows * self._replicas))
            rows = math.ceil(len(alike) / (number * self._replicas))
            found = []
            for batch in pictures.batches(alike, rows * self._replicas):
                used = [*self._features(batch), "timesteps", "noise", "posterior"]
                shared = self._share_out({name: batch[name] for name in used}, 0, rows)
                found.append(np.asarray(self._score_function(shared)))
            losses[alike] = np.concatenate(found)[: len(alike)]
        return losses

    def _in_replicas(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._strategy is None:
            return function(*arguments)
        results = self._strategy.run(function, args=arguments)
        # Every replica returns the same.
        return tf.nest.map_structure(
            lambda x: self._strategy.experimental_local_results(x)[0], results
        )

    def _update(
        self, loss: tf.Tensor, gradients: list[tf.Tensor], stop: tf.Tensor | None
    ) -> tuple[tf.Tensor, ...]:
        """One optimizer step; returns loss, gradient norm and whether any worker was stopped."""
        # A tensor in each replica, as the sum over replicas requires.
        stopped = tf.constant(0.0) if stop is None else tf.identity(stop)
        if self._replicas > 1:
            context = tf.distribute.get_replica_context()
            *gradients, loss, stopped = context.all_reduce(
                tf.distribute.ReduceOp.SUM, [*gradients, loss, stopped]
            )
        if self.loss_scale is not None:
            gradients = [g / self.loss_scale.scale for g in gradients]
        limit, norm = self.config.max_gradient_norm, tf.linalg.global_norm(gradients)
        # `tf.clip_by_global_norm` also multiplies by 1: a pass over memory that is seldom needed.
        gradients = tf.cond(
            norm > limit, lambda: [g * (limit / norm) for g in gradients], lambda: gradients
        )
        done = tf.identity(self.step) + 1
        learning_rate = learning_rate_at(self.config, done - 1, tf.identity(self._learning_rate))
        finite = tf.math.is_finite(norm)
        if self.loss_scale is None:
            self.optimizer.apply(gradients, learning_rate, done)
            hopeless = ~finite
        else:
            updates = done - self.loss_scale.skipped
            tf.cond(
                finite,
                lambda: self.optimizer.apply(gradients, learning_rate, updates),
                lambda: None,
            )
            hopeless = self.loss_scale.update(finite)
        bad = hopeless | ~tf.math.is_finite(self._weighed(loss))
        first_bad = tf.identity(self._bad_step)
        assign_here(self._bad_step, tf.where(bad & (first_bad == 0), done, first_bad))
        counted = tf.cast(finite, tf.float32)
        own, *prior = [loss] if self._prior_weight is None else tf.unstack(loss)
        sums = tf.stack([own, tf.where(finite, norm, 0.0), counted, *prior])
        assign_here(self._window, self._window + sums)
        assign_here(self.step, done)
        return self._weighed(loss), norm, stopped

    def train_step(self, batch: Batch, stop: bool = False) -> tuple[tf.Tensor, ...]:
        """One optimizer step.

        Args:
            batch: The whole batch, on every worker.
            stop: Whether this worker was told to stop.

        Returns:
            The loss, the global norm of the gradients, and a value above zero if any worker was
            told to stop; float32 [] each. They are on the device: reading them waits for it.
        """
        with contextlib.nullcontext() if self._for_gpu else _sums_as_they_are():
            return self._one_step(batch, stop)

    def _one_step(self, batch: Batch, stop: bool) -> tuple[tf.Tensor, ...]:
        batch = {name: batch[name] for name in self._features(batch)}
        flag = tf.constant(float(stop)) if self._replicas > 1 else None
        if self.config.accumulation_steps == 1:
            return self._step_function(self._share_out(batch, 0), flag)
        for part in range(self.config.accumulation_steps):
            first_row = part * self._rows * self._replicas
            self._part_function(self._share_out(batch, first_row), tf.constant(first_row))
        return self._update_function(flag)

    @property
    def step_function(self) -> tf.types.experimental.PolymorphicFunction:
        """The step as `trace` traces it if a batch is computed at once, on one device.

        It takes the features of the batch that are used, and `None`.
        """
        return self._step_function

    def _features(self, batch: Mapping[str, Any]) -> list[str]:
        text = "context" if self.text_encoder is None else "tokens"
        return [
            name
            for name in batch
            if (usual := name.removeprefix(PRIOR)) == text or usual.startswith("latent/")
        ]

    def _share_out(self, batch: Batch, first_row: int, rows: int | None = None) -> Any:
        """For each replica, its rows of the part that starts at `first_row`."""
        rows = rows or self._rows
        if self._strategy is None:
            if self.config.accumulation_steps == 1:
                return batch
            return {name: x[first_row : first_row + rows] for name, x in batch.items()}

        def rows_of(context: tf.distribute.ValueContext) -> Batch:
            first = first_row + context.replica_id_in_sync_group * rows
            return {name: x[first : first + rows] for name, x in batch.items()}

        return self._strategy.experimental_distribute_values_from_function(rows_of)

    def trace(self, spec: Mapping[str, tf.TensorSpec]) -> list[tf.Tensor]:
        """Traces the step, so that the first one starts at once.

        Args:
            spec: From `trainer.data.latents.batch_spec`, for the whole batch.

        Returns:
            The gradients in the graph that computes them on one device.
        """
        spec = {
            name: tf.TensorSpec((self._rows, *spec[name].shape[1:]), spec[name].dtype)
            for name in self._features(spec)
        }
        if self._replicas > 1:
            alone = tf.function(lambda batch: self._loss_and_gradients(batch, 0), autograph=False)
            alone.get_concrete_function(spec)
        elif self.config.accumulation_steps > 1:
            self._part_function.get_concrete_function(spec, tf.TensorSpec((), tf.int32))
        else:
            self._step_function.get_concrete_function(spec, None)
        return self._traced_gradients

    def save_state(self, path: str) -> None:
        """Writes everything that training changes, for `restart`."""
        tf.train.Checkpoint(**self._state()).write(path)

    def restart(self, path: str, learning_rate: float) -> None:
        """Restores the initial state, for another training with the same traces.

        Args:
            path: As given to `save_state`, before any step.
            learning_rate: Learning rate of the other training.
        """
        tf.train.Checkpoint(**self._state()).read(path).assert_consumed()
        self._bad_step.assign(0)
        self.config = dataclasses.replace(self.config, learning_rate=learning_rate)
        self._learning_rate.assign(learning_rate)

    @property
    def steps_done(self) -> int:
        """Optimizer steps done."""
        return int(tf.convert_to_tensor(self.step))

    def score_exported(
        self, pictures: ScoredPictures, folder: str, kept_step: int | None
    ) -> np.ndarray:
        """The losses of all rows with the weights that would be exported now.

        Args:
            pictures: What is scored.
            folder: As given to `train`.
            kept_step: The step whose weights it kept; `None` for the current averages. With a
                step, the weights are changed permanently.

        Returns:
            float32 [pictures * strata].
        """
        if kept_step is not None:
            KeptWeights(folder, self.variables).restore(kept_step)
            return self.score(pictures)
        with self._averages_in_place():
            return self.score(pictures)

    def assign_averages(self) -> None:
        """Assigns the averaged weights to the models, permanently."""
        for average, variable in zip(self.optimizer.averages, self.variables, strict=True):
            variable.assign(average)
        if self._beside:
            self._beside.merge()

    def assign_kept(self, folder: str, step: int) -> None:
        """Assigns the averaged weights that `train` kept for a step to the models, permanently."""
        KeptWeights(folder, self.variables).restore(step)
        if self._beside:
            self._beside.merge()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this, the models hold the averaged weights, as they will be exported."""
        with (
            self._averages_in_place(),
            self._beside.merged() if self._beside else contextlib.nullcontext(),
        ):
            yield

    @contextlib.contextmanager
    def _averages_in_place(self) -> Iterator[None]:
        before = [tf.identity(variable) for variable in self.variables]
        for average, variable in zip(self.optimizer.averages, self.variables, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for value, variable in zip(before, self.variables, strict=True):
                variable.assign(value)

    def train(
        self,
        batches_from: Callable[[int], Iterator[Batch]],
        folder: str,
        on_record: Callable[[StepRecord], None] = lambda record: None,
        *,
        start: StartingPoint | None = None,
        on_start: Callable[[list[StepRecord], Sequence[Evaluation]], None] = lambda *done: None,
        draw: Callable[[int], None] = lambda step: None,
        draw_every_steps: int = 0,
        evaluations: Evaluations | None = None,
        on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
        until: int | None = None,
    ) -> list[StepRecord]:
        """Trains up to the configured number of steps, from the last checkpoint in `folder`.

        Args:
            batches_from: Returns the endless batches that follow the given number of steps.
            folder: Holds checkpoints and `history.jsonl`; a run that was stopped resumes from
                here. With several workers, the chief writes and all read.
            on_record: Called with every record as it is made.
            start: Checkpoint to continue from if there is none in `folder`, of a training that
                differs in its number of steps but is the same up to that checkpoint.
            on_start: Called with the records and evaluations that were taken over from there.
            draw: Called with the number of steps done, while the models hold the averaged weights.
            draw_every_steps: Steps between these calls; 0 makes none.
            evaluations: The evaluations in between, which may decide when training stops and which
                weights are kept (see `assign_kept`); those from before a resume are read.
            on_evaluation: Called with every evaluation as it is made.
            until: Pause after this step, with a checkpoint, if it is not the last. Another call
                continues from there, exactly as if there had been no pause.

        Returns:
            All records, including those from before a resume; the last one is for the last step,
            unless training pauses.

        Raises:
            TrainingDivergedError: The loss or its gradients are infinite or not a number.
            TrainingInterruptedError: It was told to stop; its progress is saved.
        """
        config = self.config
        assert config.steps is not None
        writes = is_chief(self._strategy)
        checkpoints = RunCheckpoints(folder, kept=config.checkpoints_kept, **self._state())
        kept = KeptWeights(folder, self.variables)
        start = checkpoints.restore(start)
        source = folder if start is None else start.folder
        first_step = self.steps_done
        history = [r for r in read_history(source) if r.step <= first_step]
        if first_step:
            logger.info("Resuming at step %d of %d.", first_step, config.steps)
        if evaluations is not None:
            evaluations.restore(source, first_step, of_another=start is not None)
        end = config.steps if until is None else min(until, config.steps)
        done = first_step >= end or (evaluations is not None and evaluations.stops)
        if not done and history and history[-1].step == first_step and not self._window_is_new:
            # A final record over fewer steps than usual: now those steps belong to the next one.
            history.pop()
        if start is not None:
            on_start(history, () if evaluations is None else evaluations.done)
            if writes:
                # From here on, everything that this training needs is in its own folder.
                if evaluations is not None:
                    if evaluations.keeps_best and evaluations.best:
                        kept.take_over(source, evaluations.best.step)
                    evaluations.write(folder)
                write_history(history, folder)
                checkpoints.save(first_step)
        if done:
            return history

        def evaluate(step: int) -> None:
            assert evaluations is not None
            begun = time.monotonic()
            with self._averages_in_place():
                best = evaluations.add(step, self.score(evaluations.pictures))
                if best and evaluations.keeps_best and writes:
                    kept.save(step)
            evaluations.seconds += time.monotonic() - begun
            on_evaluation(evaluations.done[-1])

        if evaluations is not None:
            if evaluations.keeps_best and evaluations.best and writes:
                kept.saved(evaluations.best.step)
            if evaluations.due(first_step):
                evaluate(first_step)
        several_workers = worker_count(self._strategy) > 1
        batches = batches_from(first_step)
        ids: dict[int, tf.Tensor | None] = {}
        stopped = tf.constant(0.0)
        timed, since = 0, time.monotonic()
        with StopRequest() as stop:
            for step in range(first_step + 1, end + 1):
                batch = next(batches)
                ids[step] = batch.get("id")
                stopped_before = stopped
                _, _, stopped = self.train_step(batch, stop.made)
                timed += 1
                last = step == config.steps
                # Workers must stop at the same step. They all know the flag of the step before,
                # which is already computed.
                stopping = float(stopped_before) > 0 if several_workers else stop.made
                if evaluations is not None and evaluations.due(step):
                    self._check_finite(ids, checkpoints.latest)
                    ids.clear()
                    before = time.monotonic()
                    evaluate(step)
                    since += time.monotonic() - before
                    last = last or evaluations.stops
                records = last or step % config.log_every_steps == 0
                saves = last or stopping or step == end or step % config.checkpoint_every_steps == 0
                draws = draw_every_steps > 0 and step % draw_every_steps == 0 and not last
                if records or saves or draws:
                    self._check_finite(ids, checkpoints.latest)
                    ids.clear()
                if records:
                    seconds = time.monotonic() - since
                    # An earlier run, stopped in between, may have recorded at other steps.
                    since_record = step - (history[-1].step if history else 0)
                    at_once = config.batch_size * (1 if self._prior_weight is None else 2)
                    speed = timed * at_once / seconds
                    # A longer training continues as if this one had not ended here.
                    ends_early = step % config.log_every_steps != 0
                    record = self._record(step, since_record, speed, new_window=not ends_early)
                    history.append(record)
                    on_record(record)
                    timed, since = 0, time.monotonic()
                if saves and writes:
                    # History first: a checkpoint must never know more steps than the history.
                    write_history(history, folder)
                    if evaluations is not None:
                        evaluations.write(folder)
                    checkpoints.save(step)
                    if evaluations is not None and evaluations.keeps_best and evaluations.best:
                        kept.saved(evaluations.best.step)
                if last and step < config.steps:
                    logger.info(
                        "Training stops at step %d of %d: the held-out loss no longer falls.",
                        step,
                        config.steps,
                    )
                    break
                if stopping and not last:
                    # A worker that leaves while the chief is saving would make the chief fail.
                    wait_for_all(self._strategy)
                    raise TrainingInterruptedError(
                        f"training was told to stop ({stop.signal.name}) and saved step {step} of "
                        f"{config.steps}: the same command goes on from there",
                        stop.signal,
                    )
                if draws:
                    before = time.monotonic()
                    with self.averaged():
                        draw(step)
                    since += time.monotonic() - before
        return history

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "variables": self.variables,
            **self.optimizer.state,
            "step": self.step,
            "window": self._window,
        }
        if self.loss_scale is not None:
            state["loss_scale"] = [
                self.loss_scale.scale,
                self.loss_scale.updates_at_scale,
                self.loss_scale.skipped,
            ]
        return state

    def _check_finite(self, ids: Mapping[int, tf.Tensor | None], checkpoint: str | None) -> None:
        step = int(tf.convert_to_tensor(self._bad_step))
        if not step:
            return
        batch = ids.get(step)
        names = [] if batch is None else [name.decode() for name in batch.numpy()]
        listed = ", ".join(names[:_IDS_SHOWN]) or "unknown"
        more = f" and {len(names) - _IDS_SHOWN} more" if len(names) > _IDS_SHOWN else ""
        raise TrainingDivergedError(
            f"the loss or its gradients became infinite or not a number at step {step}; the "
            f"examples of that step were {listed}{more}; the last good checkpoint is "
            f"{checkpoint or 'none'}. Try a lower --learning-rate than {self.config.learning_rate}"
            + (", or another --precision than float16" if self.loss_scale is not None else "")
        )

    @property
    def _window_is_new(self) -> bool:
        """Whether no step was done since the last record that did not end the training."""
        return not np.any(tf.convert_to_tensor(self._window))

    def _record(
        self, step: int, steps: int, images_per_second: float, *, new_window: bool
    ) -> StepRecord:
        """The means of the last `steps` steps; without a new window, the next one includes them."""
        loss, norm, updates, *prior = np.asarray(tf.convert_to_tensor(self._window))
        if new_window:
            self._window.assign(tf.zeros(self._window.shape))
        scale = 1.0 if self.loss_scale is None else tf.convert_to_tensor(self.loss_scale.scale)
        return StepRecord(
            step=step,
            loss=float(loss) / steps,
            learning_rate=float(learning_rate_at(self.config, step - 1)),
            gradient_norm=float(norm) / max(1.0, float(updates)),
            images_per_second=images_per_second,
            loss_scale=float(scale),
            prior_loss=float(prior[0]) / steps if prior else None,
        )


def read_history(folder: str) -> list[StepRecord]:
    """The records in `<folder>/history.jsonl`; none if there is no such file."""
    path = os.path.join(folder, HISTORY_NAME)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "r") as f:
        return [StepRecord(**json.loads(line)) for line in f if line.strip()]


def write_history(history: list[StepRecord], folder: str) -> None:
    """Writes `<folder>/history.jsonl`, whole or not at all."""
    said = [
        {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
        for record in history
    ]
    lines = (json.dumps(record) + "\n" for record in said)
    write_whole(os.path.join(folder, HISTORY_NAME), "".join(lines))
