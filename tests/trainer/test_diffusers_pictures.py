"""What diffusers drew with what is written for it, held against what is served here.

`tests/data/tiny/pictures.npz` is what benchmarks/weights/pictures.py made of the shipped weights
and of `lora.safetensors` beside it (`--num-steps 10`), which a run on the sample dataset left:

    training: {lora_rank: 2, steps: 60, learning_rate: 0.01, train_text_encoder: true}
"""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from trainer.export.saved_models import ServingModules, serving_modules
from trainer.presets import get_preset
from trainer.training.lora import (
    LowRankAdapters,
    diffusion_model_projections,
    text_encoder_projections,
)
from trainer.weights.base_model import BaseModel

DATA = Path(__file__).resolve().parent.parent / "data" / "tiny"


def drawn(modules: ServingModules, theirs: dict[str, np.ndarray]) -> np.ndarray:
    """The same prompts from the same noise, as the exported graphs draw them."""
    prompts = tf.constant(theirs["prompts"].tolist())
    contexts = modules.text_encoder.text(prompts, tf.fill(prompts.shape, ""))
    latent = modules.diffusion_model.from_noise(
        **contexts,
        num_steps=tf.constant(theirs["num_steps"], tf.int32),
        guidance_scale=tf.constant(theirs["guidance_scale"], tf.float32),
        noise=tf.constant(theirs["noise"]),
    )["latent"]
    return modules.decoder.pixels(latent).numpy().astype(int)


@pytest.mark.slow
def test_diffusers_draws_what_is_served_with_our_adapters_too() -> None:
    theirs = dict(np.load(DATA / "pictures.npz"))
    pictures, with_lora = (theirs[n].astype(int) for n in ("pictures", "pictures_with_lora"))
    model = BaseModel.locate(get_preset("tiny"), 128, "default")
    networks = [model.build(name) for name in ("text_encoder", "diffusion_model", "decoder")]
    modules = serving_modules(*networks, model.preset, model.image_size)

    # Ours cut pixels off where theirs round, which is half of a level.
    assert np.abs(drawn(modules, theirs) - pictures).mean(axis=(1, 2, 3)).max() < 1
    # They are pictures, and not all one.
    assert np.abs(np.diff(pictures, axis=0)).mean() > 10

    text_encoder, diffusion_model, _ = networks
    stored = load_file(DATA / "lora.safetensors")
    names = diffusion_model_projections(diffusion_model) | text_encoder_projections(text_encoder)
    first = next(iter(names))
    adapters = LowRankAdapters(
        names,
        rank=stored[f"{first}.lora_down.weight"].shape[0],
        alpha=float(stored[f"{first}.alpha"]),
        seed=0,
    )
    for name, *pair in zip(names, adapters.variables[::2], adapters.variables[1::2], strict=True):
        for variable, part in zip(pair, ("down", "up"), strict=True):
            variable.assign(stored.pop(f"{name}.lora_{part}.weight").T)
        del stored[f"{name}.alpha"]
    assert not stored
    adapters.merge()
    assert np.abs(drawn(modules, theirs) - with_lora).mean(axis=(1, 2, 3)).max() < 1
    assert np.abs(with_lora - pictures).mean() > 3
