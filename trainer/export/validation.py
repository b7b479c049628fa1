"""Draws the validation prompts with the models during training."""

from __future__ import annotations

import dataclasses
import json
import os

import tensorflow as tf

from trainer.export.saved_models import ServingModules
from trainer.training_config import ValidationConfig

PROMPTS_NAME = "prompts.json"
"""The file next to the folders of pictures that says how they were drawn."""


def draw_validation(
    modules: ServingModules, validation: ValidationConfig, folder: str, step: int
) -> None:
    """Draws every validation prompt, which must be known, with the current models.

    Writes `<folder>/NN.png`, and TensorBoard images for `step`.
    """
    assert validation.prompts is not None
    tf.io.gfile.makedirs(folder)
    for index, prompt in enumerate(validation.prompts):
        contexts = modules.text_encoder.text([prompt], [""])
        latent = modules.diffusion_model.sampled(
            **contexts,
            num_steps=tf.constant(validation.num_steps, tf.int32),
            guidance_scale=tf.constant(validation.guidance_scale, tf.float32),
            seed=tf.constant([validation.seed + index, 0], tf.int32),
            sampler=tf.constant(validation.sampler),
        )
        encoded = modules.decoder.png(**latent)["image"][0]
        with tf.io.gfile.GFile(os.path.join(folder, f"{index:02d}.png"), "wb") as f:
            f.write(encoded.numpy())
        picture = tf.io.decode_png(encoded, channels=3)[None]
        tf.summary.image(f"validation/{index:02d}", picture, step=step, description=prompt)
    with tf.io.gfile.GFile(os.path.join(os.path.dirname(folder), PROMPTS_NAME), "w") as f:
        f.write(json.dumps(dataclasses.asdict(validation), indent=2, sort_keys=True))
