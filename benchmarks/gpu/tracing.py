"""Rows as HLO modules without weights, traced for a GPU on any machine; one group per process.

XLA gets here what it would get on a GPU: the step or the drawing, with its variables as parameters.
This needs neither values nor a GPU, only the memory of the variables, most of which is never
touched.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from benchmarks.gpu.hlo import (
    aliases,
    constant_bytes,
    count_flops,
    dtype_name,
    read_module,
    slim,
)
from benchmarks.gpu.rows import NUM_STEPS, Row
from benchmarks.gpu.stored import Traced, write_traced
from benchmarks.train.measured import CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY
from trainer.data.latents import batch_spec
from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.diffusion.sampler import in_one_call, sample
from trainer.export.drawing_memory import DrawingMemory
from trainer.export.saved_models import DecoderModule, DiffusionModelModule
from trainer.networks import build_network
from trainer.presets import Preset, get_preset
from trainer.training.fine_tuner import FineTuner
from trainer.training.memory import activation_bytes, estimate_memory
from trainer.training_config import ResolvedTrainingConfig, TrainingConfig

GUIDANCE_SCALE = 7.5


def training_config(row: Row, preset: Preset, **overrides: Any) -> ResolvedTrainingConfig:
    """The hyperparameters for the steps of a row, with those of `make bench-train`."""
    settings: dict[str, Any] = {
        "batch_size": row.batch_size,
        "learning_rate": LEARNING_RATE,
        "learning_rate_schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": WEIGHT_DECAY,
        "max_gradient_norm": CLIP_NORM,
        "lora_rank": row.lora_rank,
        "train_text_encoder": False,
        "gradient_checkpointing": row.gradient_checkpointing,
        "precision": row.precision,
        "xla": "on",
    }
    return TrainingConfig(**{**settings, **overrides}).resolved(preset)


def features_of(preset: Preset, row: Row) -> dict[str, tf.TensorSpec]:
    """The features of a batch of cached latents that a step takes."""
    spec = batch_spec(preset, row.image_size, flip=False, batch_size=row.batch_size)
    return {name: s for name, s in spec.items() if name == "context" or name.startswith("latent/")}


class Tracer:
    """Traces the rows of one group; what they share is made once."""

    def __init__(self, row: Row, preset: Preset) -> None:
        """Builds the networks.

        Args:
            row: A row of the group.
            preset: Preset of the networks.
        """
        self._preset = preset
        self._group = row.group
        self._tuner: _RowsTuner | None = None
        names = ["diffusion_model", *(["decoder"] if row.kind == "drawing" else [])]
        # Halving the weights for drawing checks whether they are numbers.
        with _without_values(read=row.kind == "drawing"):
            self._networks = [build_network(name, preset, row.image_size) for name in names]

    def __call__(self, row: Row) -> Traced:
        """The step or the drawing of a row, in the form for a GPU.

        Raises:
            ValueError: The row is in another group.
        """
        if row.group != self._group:
            raise ValueError(f"{row.name} is not in the group {self._group}")
        if row.kind == "drawing":
            return trace_drawing(self._networks, row, self._preset)
        config = training_config(row, self._preset)
        model, text = self._networks[0], self._preset.text_encoder
        if self._tuner is None:
            with _without_values():
                self._tuner = _RowsTuner(
                    model,
                    self._preset,
                    config,
                    empty_caption=tf.zeros((text.max_length, text.width)),
                    for_gpu=True,
                )
        self._tuner.take(config)
        return trace_step(self._tuner, model, features_of(self._preset, row))


class _RowsTuner(FineTuner):
    """Makes the steps of several rows, on the same variables; their update is traced once."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._any_update = tf.function(super()._update, autograph=False)

    def take(self, config: ResolvedTrainingConfig) -> None:
        """Makes the next traced step use `config`, which must have the same state."""
        self.config = config
        self._rows = config.batch_size
        self._step_function = tf.function(self._train_step, autograph=False, jit_compile=True)

    def _update(
        self, loss: tf.Tensor, gradients: list[tf.Tensor], stop: tf.Tensor | None
    ) -> tuple[tf.Tensor, ...]:
        updated: tuple[tf.Tensor, ...] = self._any_update(loss, gradients, stop)
        return updated


def trace_step(
    tuner: FineTuner,
    model: keras.Model,
    features: Mapping[str, tf.TensorSpec],
    first_values: Mapping[int, Mapping[str, Any]] | None = None,
) -> Traced:
    """The step of a `FineTuner`.

    Args:
        tuner: A tuner made with `for_gpu=True` and `xla: on`.
        model: The network in it.
        features: The features of a batch.
        first_values: First values of variables, by the identity of their handles; by default the
            initial values of networks.
    """
    gradients = tuner.trace(features)
    activations = activation_bytes(gradients)
    estimate = estimate_memory(
        [model], tuner.variables, tuner.config, activations=activations, program=0
    )
    batch = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in features.items()}
    first = {id(v.value.handle): _first_value_of(v) for v in model.weights}
    state: dict[int, Mapping[str, Any]] = {
        id(v.handle): {"normal": v.shape[0] ** -0.5} for v in tuner.variables
    }
    return _traced(
        tuner.step_function,
        (batch, None),
        first={**state, **first, **(first_values or {})},
        results=("loss", "gradient_norm", "stopped"),
        estimate_bytes=estimate.total,
    )


def trace_drawing(
    networks: Sequence[keras.Model],
    row: Row,
    preset: Preset,
    names: Sequence[str] | None = None,
) -> Traced:
    """The drawing of a row as an exported model does it on a GPU, compiled into one computation.

    Args:
        networks: A diffusion model and a decoder.
        row: What to draw.
        preset: Preset of the networks.
        names: Names of the arrays with the values of all weights, in order; by default weights have
            the initial values of networks.
    """
    precision = row.precision
    with _without_values():
        diffusion_model = DiffusionModelModule(
            networks[0], preset, row.image_size, precision, precision
        )
        decoder = DecoderModule(networks[1], precision, precision)
    function = tf.function(
        lambda **inputs: draw(diffusion_model, decoder, preset, **inputs),
        autograph=False,
        jit_compile=True,
    )
    text = preset.text_encoder
    context = (row.batch_size, text.max_length, text.width)
    inputs = {
        "noise": tf.zeros((row.batch_size, *preset.latent_shape(row.image_size))),
        "context": tf.zeros(context),
        "unconditional_context": tf.zeros(context),
    }
    variables = [v for model in networks for v in model.weights]
    stored = [*diffusion_model.variables, *decoder.variables]
    values: list[Mapping[str, Any]]
    values = [{"array": n} for n in names] if names else [_first_value_of(v) for v in variables]
    first = {id(v.handle): value for v, value in zip(stored, values, strict=True)}
    height, width, _ = preset.latent_shape(row.image_size)
    a_picture = max(DrawingMemory.of(preset).of_networks(float(height * width)))
    weight_bytes = sum(v.shape.num_elements() * v.dtype.size for v in stored)
    return _traced(
        function,
        (),
        inputs,
        first=first,
        results=("latent", "pixels"),
        loop_trips=NUM_STEPS,
        estimate_bytes=weight_bytes + row.batch_size * int(a_picture),
    )


def draw(
    diffusion_model: DiffusionModelModule,
    decoder: DecoderModule,
    preset: Preset,
    *,
    noise: tf.Tensor,
    context: tf.Tensor,
    unconditional_context: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the exported modules draw on a GPU in `NUM_STEPS` steps.

    The signatures themselves also have the branch of a CPU and check texts, which XLA cannot do.

    Returns:
        Latents, float32 [B, h, w, 4], and pixels, uint8 [B, H, W, 3].
    """
    latent = sample(
        in_one_call(diffusion_model.predict_on_gpu, context, unconditional_context),
        NoiseSchedule.of(preset),
        noise=noise,
        num_steps=tf.constant(NUM_STEPS),
        guidance_scale=tf.constant(GUIDANCE_SCALE),
    )
    return latent, decoder.pixels(latent)


def _traced(
    function: tf.types.experimental.PolymorphicFunction,
    arguments: tuple[Any, ...],
    named: Mapping[str, tf.Tensor] | None = None,
    *,
    first: Mapping[int, Mapping[str, Any]],
    results: Sequence[str],
    estimate_bytes: int,
    loop_trips: int = 1,
) -> Traced:
    """The computation that XLA gets from a function that it compiles, called with small tensors.

    Args:
        function: A function with `jit_compile=True`.
        arguments: Its positional arguments.
        named: Its keyword arguments.
        first: First values of variables, by the identity of their handles. Of the others, single
            numbers such as the learning rate keep their present value, and the rest are zeros.
        results: Names of the results of the function.
        estimate_bytes: See `Traced`.
        loop_trips: See `count_flops`.
    """
    named = named or {}
    concrete = function.get_concrete_function(*arguments, **named)
    serialized = function.experimental_get_compiler_ir(*arguments, **named)(stage="hlo_serialized")
    module = read_module(serialized)
    slim(module)
    names = [
        *(name for argument in arguments if argument for name in sorted(argument)),
        *sorted(named),
    ]
    numbers = {id(v.handle): {"fill": float(v)} for v in concrete.variables if not v.shape.rank}
    first = {**numbers, **first}
    sources: list[Mapping[str, Any]] = [{"feature": name} for name in names]
    # The remaining one is the empty caption, here zeros.
    sources += [first.get(id(tensor), {"fill": 0.0}) for tensor in concrete.captured_inputs]
    shapes = module.host_program_shape.parameters
    if constant_bytes(module) > module.ByteSize() // 2:
        raise ValueError("more than half of the module is constants: weights must be parameters")
    return Traced(
        hlo=module.SerializeToString(),
        parameters=[
            {"dtype": dtype_name(shape), "shape": list(shape.dimensions), **source}
            for shape, source in zip(shapes, sources, strict=True)
        ],
        results=results,
        aliases=aliases(module),
        flops=count_flops(module, loop_trips),
        estimate_bytes=estimate_bytes,
    )


def _first_value_of(variable: keras.Variable) -> dict[str, float]:
    """Initial value of a network: factors are 1, addends 0, and kernels keep magnitudes."""
    if len(variable.shape) < 2:
        return {"fill": float(variable.name == "gamma")}
    return {"normal": math.prod(variable.shape[:-1]) ** -0.5}


def _without_values(*, read: bool = False) -> contextlib.AbstractContextManager[None]:
    """Within this, new variables have memory that is never written to, and so take none.

    Args:
        read: Whether they are read; then they are zeros.
    """

    def create(next_creator: Any, **arguments: Any) -> tf.Variable:
        given = arguments["initial_value"]
        value = given
        if callable(given):
            with tf.Graph().as_default():
                value = given()
        if tf.is_tensor(value) and value.dtype.is_floating:
            given = tf.raw_ops.Empty(shape=value.shape.as_list(), dtype=value.dtype, init=read)
        return next_creator(**{**arguments, "initial_value": given})

    scope: contextlib.AbstractContextManager[None] = tf.variable_creator_scope(create)
    return scope


def main() -> None:
    """The command line: settings of a group's rows as JSON, and the folder to write to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    rows = [Row(**settings) for settings in arguments.settings]
    tracer = Tracer(rows[0], get_preset(rows[0].preset))
    for row in rows:
        write_traced(tracer(row), arguments.folder, row.name)
        # A graph is a reference cycle that takes a gigabyte.
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{row.name}: {peak / 1e9:.1f} GB at most", file=sys.stderr, flush=True)
    print(json.dumps({"peak_bytes": peak}))


if __name__ == "__main__":
    main()
