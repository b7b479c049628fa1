"""Our training step on cached latents; prints one line of JSON."""

from __future__ import annotations

import tensorflow as tf

from benchmarks.train.measured import (
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Timer,
    arguments_of,
)
from trainer.data.latents import batch_spec
from trainer.networks import build_diffusion_model
from trainer.networks.matrix_products import convolutions_as_matrix_products
from trainer.presets import get_preset
from trainer.training.fine_tuner import FineTuner
from trainer.training_config import TrainingConfig


def main() -> None:
    """The command line."""
    parser = arguments_of(__doc__)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    preset, size, batch_size = get_preset("sd-v1-4"), arguments.image_size, arguments.batch_size
    timer = Timer()
    config = TrainingConfig(
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        learning_rate_schedule="constant",
        warmup_steps=0,
        weight_decay=WEIGHT_DECAY,
        max_gradient_norm=CLIP_NORM,
        lora_rank=arguments.lora_rank,
        gradient_checkpointing=arguments.gradient_checkpointing,
    ).resolved(preset)
    with timer.building():
        model = build_diffusion_model(preset, size)
    text = preset.text_encoder
    tuner = FineTuner(model, preset, config, empty_caption=tf.zeros((text.max_length, text.width)))
    spec = batch_spec(preset, size, flip=False, batch_size=batch_size)
    batch = {
        name: tf.random.stateless_normal(s.shape, [0, 1])
        if s.dtype.is_floating
        else tf.zeros(s.shape, s.dtype)
        for name, s in spec.items()
    }
    with timer.building():
        tuner.trace(spec)

    @tf.function(autograph=False)
    def forward() -> tf.Tensor:
        with convolutions_as_matrix_products([model]):
            return tuner.loss(batch, tf.constant(1, tf.int64))

    timer.measure(
        lambda: [float(value) for value in tuner.train_step(batch)[:2]],
        lambda: float(forward()),
        arguments.steps,
    )


if __name__ == "__main__":
    main()
