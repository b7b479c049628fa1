"""Our rows by TensorFlow itself, one per process; prints one line of JSON.

The training step is the Trainer's; pictures are drawn with SavedModels as they are pushed.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.gpu.carried.timing import compiling_and_calls, speed
from benchmarks.gpu.rows import NUM_STEPS, Row
from benchmarks.gpu.tracing import GUIDANCE_SCALE, features_of, training_config
from trainer.export.saved_models import export_models, serving_modules
from trainer.networks import build_network
from trainer.presets import Preset, get_preset
from trainer.training.fine_tuner import FineTuner
from trainer.training.memory import peak_gpu_bytes

Call = Callable[[], tf.Tensor]


def training(row: Row, preset: Preset) -> Call:
    """One optimizer step, which XLA compiles if there is a GPU."""
    model = build_network("diffusion_model", preset, row.image_size)
    text = preset.text_encoder
    empty_caption = tf.zeros((text.max_length, text.width))
    config = training_config(row, preset, xla="auto")
    tuner = FineTuner(model, preset, config, empty_caption=empty_caption)
    batch = {
        name: tf.random.stateless_normal(spec.shape, [0, 1])
        for name, spec in features_of(preset, row).items()
    }
    return lambda: tuner.train_step(batch)[0]


def export(row: Row, preset: Preset, folder: Path) -> None:
    """Writes the SavedModels of a row, with random weights."""
    networks = {
        name: build_network(name, preset, row.image_size)
        for name in ("text_encoder", "diffusion_model", "decoder")
    }
    modules = serving_modules(
        **networks,
        preset=preset,
        image_size=row.image_size,
        weights_dtype=row.precision,
        compute=row.precision,
    )
    export_models(str(folder), modules)


def drawing(row: Row, preset: Preset, folder: Path) -> Call:
    """Drawing with exported models, from contexts to pixels."""
    models = [tf.saved_model.load(str(folder / name)) for name in ("diffusion_model", "decoder")]
    text = preset.text_encoder
    shape = (row.batch_size, text.max_length, text.width)
    inputs = {
        "context": tf.random.stateless_normal(shape, [0, 1]),
        "unconditional_context": tf.random.stateless_normal(shape, [0, 2]),
        "num_steps": tf.constant(NUM_STEPS),
        "guidance_scale": tf.constant(GUIDANCE_SCALE),
        "noise": tf.random.stateless_normal(
            (row.batch_size, *preset.latent_shape(row.image_size)), [0, 3]
        ),
    }

    def draw() -> tf.Tensor:
        sampler, decoder = models
        latent = sampler.signatures["from_noise"](**inputs)["latent"]
        return decoder.signatures["serving_default"](latent=latent)["generated_images"]

    return draw


def measure(call: Call, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Times calls.

    Args:
        call: Starts a step or a drawing.
        settings: Settings of the row, with its `flops`.
        device: Name of the device.
    """
    latest: list[tf.Tensor] = []

    def once() -> None:
        latest[:] = [call()]

    def wait() -> None:
        latest[0].numpy()

    compile_seconds, seconds = compiling_and_calls(once, wait)
    peak = peak_gpu_bytes()
    return {
        **speed(settings, device, seconds),
        "compile_seconds": compile_seconds,
        "peak_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "finite": bool(tf.reduce_all(tf.math.is_finite(tf.cast(latest[0], tf.float32)))),
    }


def describe() -> dict[str, Any]:
    """The device and the software, for the head of the results; the first GPU, or the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "cpu"
    return {
        "device": name,
        "platform": "gpu" if gpus else "cpu",
        "software": {"tensorflow": tf.__version__},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--row", type=json.loads, help="a row of a pack's manifest")
    parser.add_argument("--models", type=Path, help="folder of the models of a drawing")
    parser.add_argument("--export", action="store_true", help="only write the models")
    arguments = parser.parse_args()
    machine = describe()
    if not arguments.row:
        print(json.dumps(machine))
        return
    fields = Row.__dataclass_fields__
    row = Row(**{name: value for name, value in arguments.row.items() if name in fields})
    preset = get_preset(row.preset)
    try:
        if arguments.export:
            export(row, preset, arguments.models)
            facts: dict[str, Any] = {}
        else:
            call = (
                training(row, preset)
                if row.kind == "training"
                else drawing(row, preset, arguments.models)
            )
            facts = measure(call, arguments.row, machine["device"])
    except tf.errors.ResourceExhaustedError as error:
        facts = {"state": "does not fit", "why": error.message.splitlines()[0][:300]}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
