"""One optimizer step in this process, measured; what to train is JSON in the first argument.

Keys: `preset`, `image_size`, `batch_size`, `overrides` of `TrainingConfig`. Prints JSON: `estimate`
and what it was made of, `peak` of resident memory, in bytes, and seconds of the parts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time

# As tests/conftest.py.
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from trainer.data.latents import batch_spec
from trainer.presets import get_preset
from trainer.training.fine_tuner import FineTuner
from trainer.training.memory import activation_bytes, device_memory, estimate_memory, program_bytes
from trainer.training_config import TrainingConfig
from trainer.weights.base_model import BaseModel


def main() -> None:
    order = json.loads(sys.argv[1])
    preset, image_size = get_preset(order["preset"]), order["image_size"]
    config = TrainingConfig(steps=10, batch_size=order["batch_size"], **order["overrides"])
    config = config.resolved(preset)
    since = time.monotonic()
    # All that `run_fn` holds.
    base_model = BaseModel.locate(preset, image_size, "random")
    networks = {n: base_model.build(n) for n in ("diffusion_model", "text_encoder", "decoder")}
    seconds = {"build": time.monotonic() - since}
    program = program_bytes(list(networks.values()))
    text_encoder = networks["text_encoder"] if config.train_text_encoder else None
    width = preset.text_encoder.width
    tuner = FineTuner(
        networks["diffusion_model"],
        preset,
        config,
        empty_caption=tf.zeros([77], tf.int32) if text_encoder else tf.zeros((77, width)),
        text_encoder=text_encoder,
    )
    since = time.monotonic()
    spec = batch_spec(preset, image_size, False, config.batch_size)
    activations = activation_bytes(tuner.trace(spec))
    seconds["trace"] = time.monotonic() - since
    estimate = estimate_memory(
        list(networks.values()),
        tuner.variables,
        config,
        activations=activations,
        program=program,
    )
    rng = np.random.default_rng(0)
    batch = {
        name: tf.constant(rng.integers(0, 49408, s.shape), s.dtype)
        if s.dtype.is_integer
        else tf.constant(rng.standard_normal(s.shape), s.dtype)
        for name, s in spec.items()
    }
    losses = []
    for step in ("first_step", "second_step"):
        since = time.monotonic()
        losses.append(float(tuner.train_step(batch)[0]))
        seconds[step] = time.monotonic() - since
    print(
        json.dumps(
            {
                "estimate": estimate.total,
                "parts": dataclasses.asdict(estimate),
                "available": device_memory()[1],
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "trainable": sum(v.shape.num_elements() for v in tuner.variables),
                "losses": losses,
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
