"""Steps and drawing of a small model with their inputs, and the results of a CPU.

TensorFlow's own kernels compute them here, operation by operation, with convolutions as matrix
products; neither XLA nor a GPU takes part. The runner compares the results of the device with
these. Random values of a step are inputs here, because XLA draws other numbers from a seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from benchmarks.gpu.rows import NUM_STEPS, Row
from benchmarks.gpu.stored import write_traced
from benchmarks.gpu.tracing import (
    GUIDANCE_SCALE,
    features_of,
    trace_drawing,
    trace_step,
    training_config,
)
from trainer.export.saved_models import DecoderModule, DiffusionModelModule
from trainer.presets import NUM_TIMESTEPS, Preset, get_preset
from trainer.training.fine_tuner import Batch, FineTuner, RandomValues
from trainer.training_config import Precision
from trainer.weights.base_model import BaseModel

STEPS = 50
_BATCH_SIZE = 4
_GIVEN = "given/"


class GivenNoiseTuner(FineTuner):
    """Takes the random values of a step from the batch: `given/timesteps` and so on."""

    def loss(self, batch: Batch, step: tf.Tensor, first_row: tf.Tensor | int = 0) -> tf.Tensor:
        """As `FineTuner.loss`, for a batch that contains the random values."""
        self._given = {
            name.removeprefix(_GIVEN): values
            for name, values in batch.items()
            if name.startswith(_GIVEN)
        }
        return super().loss(batch, step, first_row)

    def _random_values(
        self, step: tf.Tensor, latent_shape: tf.TensorShape, variants: int
    ) -> RandomValues:
        size = self.config.batch_size
        return RandomValues(
            **self._given,
            mirrored=tf.zeros([size, 1, 1, 1], tf.bool),
            variant=tf.zeros([size], tf.int32),
        )

    def _features(self, batch: Mapping[str, Any]) -> list[str]:
        return [*super()._features(batch), *(name for name in batch if name.startswith(_GIVEN))]


def make_checks(
    folder: Path,
    preset: Preset,
    weights: str = "default",
    *,
    image_size: int,
    steps: int = STEPS,
    precisions: tuple[Precision, ...] = get_args(Precision),
) -> list[dict[str, Any]]:
    """Computes and writes all checks.

    Args:
        folder: Folder to write to.
        preset: The preset of the networks.
        weights: Their base weights; `BaseModel.locate` lists the choices.
        image_size: Side of the pictures in pixels.
        steps: Training steps.
        precisions: Precisions of the steps and of drawing.

    Returns:
        The entries of the pack's manifest; `jax_side.run_check` reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base_model = BaseModel.locate(preset, image_size, weights)
    networks = [base_model.build(name) for name in ("diffusion_model", "decoder")]
    variables = [v for model in networks for v in model.weights]
    names = [f"weights/{index}" for index in range(len(variables))]
    # As in the shipped files: half the size, and lossless for them.
    for variable in variables:
        variable.assign(tf.cast(tf.cast(variable.value, tf.float16), tf.float32))
    before = [np.asarray(v) for v in variables]
    stored = {name: x.astype(np.float16) for name, x in zip(names, before, strict=True)}
    np.savez_compressed(folder / "weights.npz", **stored)
    checks = _drawing_checks(folder, preset, networks, names, image_size, precisions)
    batch = _batch(preset, image_size, steps)
    np.savez_compressed(folder / "inputs.npz", **batch)
    for precision in precisions:
        row = Row("training", preset.name, image_size, _BATCH_SIZE, precision)
        losses = _losses_of_cpu(row, preset, networks[0], batch, steps)
        # Undoes the training.
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        checks.append(_step_check(folder, row, preset, networks[0], batch, names, losses))
    return checks


def _tuner(row: Row, preset: Preset, model: keras.Model, steps: int, **how: Any) -> FineTuner:
    config = training_config(
        row,
        preset,
        learning_rate=preset.training.learning_rate,
        steps=steps,
        xla="on" if how["for_gpu"] else "off",
    )
    text = preset.text_encoder
    empty_caption = tf.zeros((text.max_length, text.width))
    return GivenNoiseTuner(model, preset, config, empty_caption=empty_caption, **how)


def _losses_of_cpu(
    row: Row, preset: Preset, model: keras.Model, batch: Mapping[str, np.ndarray], steps: int
) -> list[float]:
    tuner = _tuner(row, preset, model, steps, for_gpu=False)
    losses = []
    with tf.device("CPU"):
        for step in range(steps):
            at_step = {
                name: tf.constant(x[step] if name.startswith(_GIVEN) else x)
                for name, x in batch.items()
            }
            losses.append(float(tuner.train_step(at_step)[0]))
    return losses


def _step_check(
    folder: Path,
    row: Row,
    preset: Preset,
    model: keras.Model,
    batch: Mapping[str, np.ndarray],
    names: list[str],
    losses: list[float],
) -> dict[str, Any]:
    tuner = _tuner(row, preset, model, len(losses), for_gpu=True)
    features = {
        name: tf.TensorSpec(x.shape[1:] if name.startswith(_GIVEN) else x.shape, x.dtype)
        for name, x in batch.items()
    }
    arrays = {
        id(variable.handle): {"array": name}
        # The average starts as the weights, and is kept divided by a scale of one.
        for variables in (tuner.variables, tuner.optimizer.state["averages"][:-1])
        for variable, name in zip(variables, names, strict=False)
    }
    name = f"step_{row.precision}"
    write_traced(trace_step(tuner, model, features, arrays), folder, name)
    return {
        "name": name,
        "kind": row.kind,
        "precision": row.precision,
        "preset": preset.name,
        "steps": len(losses),
        "losses": losses,
        "arrays": ["weights.npz", "inputs.npz"],
    }


def _drawing_checks(
    folder: Path,
    preset: Preset,
    networks: list[keras.Model],
    names: list[str],
    image_size: int,
    precisions: Sequence[Precision],
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    text = preset.text_encoder
    shape = (1, *preset.latent_shape(image_size))
    inputs = {
        "noise": rng.standard_normal(shape, np.float32),
        "context": rng.standard_normal((1, text.max_length, text.width), np.float32),
        "unconditional_context": np.zeros((1, text.max_length, text.width), np.float32),
    }
    outputs: dict[str, np.ndarray] = {}
    checks = []
    for precision in precisions:
        diffusion_model = DiffusionModelModule(
            networks[0], preset, image_size, precision, precision
        )
        decoder = DecoderModule(networks[1], precision, precision)
        with tf.device("CPU"):
            latent = diffusion_model.from_noise(
                num_steps=tf.constant(NUM_STEPS),
                guidance_scale=tf.constant(GUIDANCE_SCALE),
                **{name: tf.constant(x) for name, x in inputs.items()},
            )["latent"]
            pixels = decoder.pixels(latent)
        outputs |= {f"latent_{precision}": latent.numpy(), f"pixels_{precision}": pixels.numpy()}
        row = Row("drawing", preset.name, image_size, 1, precision)
        name = f"drawing_{precision}"
        write_traced(trace_drawing(networks, row, preset, names), folder, name)
        checks.append(
            {
                "name": name,
                "kind": row.kind,
                "precision": precision,
                "preset": preset.name,
                "latent": f"latent_{precision}",
                "pixels": f"pixels_{precision}",
                "arrays": ["weights.npz", "drawing.npz"],
            }
        )
    np.savez_compressed(folder / "drawing.npz", **inputs, **outputs)
    return checks


def _batch(preset: Preset, image_size: int, steps: int) -> dict[str, np.ndarray]:
    """A batch to memorize, and the random values of each step: [steps, B, ...]."""
    rng = np.random.default_rng(0)
    row = Row("training", preset.name, image_size, _BATCH_SIZE, "float32")
    shape = tuple(features_of(preset, row)["latent/mean"].shape)
    text = preset.text_encoder
    # Flat areas, like those of pictures.
    coarse = rng.standard_normal((_BATCH_SIZE, 2, 2, shape[-1]))
    mean = coarse.repeat(shape[1] // 2, axis=1).repeat(shape[2] // 2, axis=2)
    context = rng.standard_normal((_BATCH_SIZE, text.max_length, text.width))
    return {
        "context": context.astype(np.float32),
        "latent/mean": (4.0 * mean).astype(np.float32),
        "latent/log_variance": np.full(shape, -8.0, np.float32),
        "given/timesteps": rng.integers(0, NUM_TIMESTEPS, (steps, _BATCH_SIZE), np.int32),
        "given/noise": rng.standard_normal((steps, *shape), np.float32),
        "given/posterior": rng.standard_normal((steps, *shape), np.float32),
        "given/dropped": rng.random((steps, _BATCH_SIZE, 1)) < 0.1,
    }


def main() -> None:
    """The command line: the folder to write to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    preset = get_preset("tiny")
    checks = make_checks(arguments.folder, preset, image_size=preset.image_size // 2)
    print(json.dumps(checks))


if __name__ == "__main__":
    main()
