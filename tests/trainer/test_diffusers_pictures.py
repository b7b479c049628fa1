"""What diffusers drew with what is written for it, held against what is served here.

`tests/data/tiny/pictures.npz` is what benchmarks/weights/pictures.py made of the shipped weights
and of `lora.safetensors` beside it, which a run on the sample dataset left:

    training: {lora_rank: 2, steps: 60, learning_rate: 0.01, train_text_encoder: true}
"""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from trainer.export.saved_models import serving_modules
from trainer.presets import get_preset
from trainer.training.lora import (
    LowRankAdapters,
    diffusion_model_projections,
    text_encoder_projections,
)
from trainer.weights.base_model import BaseModel

DATA = Path(__file__).resolve().parent.parent / "data" / "tiny"
BASE_MODEL = BaseModel.locate(get_preset("tiny"), 128, "default")


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "pictures.npz"))


@pytest.fixture
def networks() -> list[keras.Model]:
    return [BASE_MODEL.build(name) for name in ("text_encoder", "diffusion_model", "decoder")]


def drawn(networks: list[keras.Model], theirs: dict[str, np.ndarray]) -> np.ndarray:
    """The same prompts from the same noise, as the exported graphs draw them."""
    modules = serving_modules(*networks, BASE_MODEL.preset, BASE_MODEL.image_size)
    prompts = tf.constant(theirs["prompts"].tolist())
    contexts = modules.text_encoder.text(prompts, tf.fill(prompts.shape, ""))
    latent = modules.diffusion_model.from_noise(
        **contexts,
        num_steps=tf.constant(theirs["num_steps"], tf.int32),
        guidance_scale=tf.constant(theirs["guidance_scale"], tf.float32),
        noise=tf.constant(theirs["noise"]),
    )["latent"]
    return modules.decoder.pixels(latent).numpy().astype(int)


def test_diffusers_draws_what_is_served(networks, theirs) -> None:
    difference = np.abs(drawn(networks, theirs) - theirs["pictures"])
    assert difference.mean(axis=(1, 2, 3)).max() < 0.6
    # They are pictures, and not all one.
    assert np.abs(np.diff(theirs["pictures"].astype(int), axis=0)).mean() > 10


def test_diffusers_reads_our_adapters(networks, theirs) -> None:
    text_encoder, diffusion_model, _ = networks
    stored = load_file(DATA / "lora.safetensors")
    names = diffusion_model_projections(diffusion_model) | text_encoder_projections(text_encoder)
    rank = stored[f"{next(iter(names))}.lora_down.weight"].shape[0]
    alpha = float(stored[f"{next(iter(names))}.alpha"])
    adapters = LowRankAdapters(names, rank=rank, alpha=alpha, seed=0)
    for name, *pair in zip(names, adapters.variables[::2], adapters.variables[1::2], strict=True):
        for variable, part in zip(pair, ("down", "up"), strict=True):
            variable.assign(stored.pop(f"{name}.lora_{part}.weight").T)
        del stored[f"{name}.alpha"]
    assert not stored
    adapters.merge()
    expected = theirs["pictures_with_lora"].astype(int)
    assert np.abs(drawn(networks, theirs) - expected).mean(axis=(1, 2, 3)).max() < 0.6
    assert np.abs(expected - theirs["pictures"]).mean() > 3
