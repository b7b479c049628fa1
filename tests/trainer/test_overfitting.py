"""A set so small that training copies it: what the best step is worth on pictures of nobody's."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data.generate import make_rows
from storage.images import decode_image, resize_cover, to_model_range
from trainer.data.held_out import HeldOutPictures, Pictures
from trainer.data.latents import make_latent_example
from trainer.diffusion.noise_schedule import LATENT_SCALE, alphas_cumprod, timestep_embedding
from trainer.presets import get_preset
from trainer.text.tokenizer import tokenize
from trainer.training.evaluations import Evaluation, evaluations_for, paired_interval
from trainer.training.fine_tuner import Batch, FineTuner
from trainer.training_config import TrainingConfig
from trainer.weights.base_model import BaseModel

PRESET = get_preset("tiny")
TRAINED, HELD_OUT, FRESH = 24, 40, 160
SETTINGS = {
    "steps": 300,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "evaluate_every_steps": 15,
    "keep": "best",
    "train_text_encoder": False,
}


def creatures(networks: dict, seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Latents and contexts of a generated dataset's first creatures, as LatentGen stores them."""
    rows = make_rows(seed)[:count]
    size = PRESET.image_size
    pixels = np.stack([resize_cover(decode_image(row.png), size) for row in rows])
    moments = networks["image_encoder"].predict(to_model_range(pixels), verbose=0)
    tokens = tokenize([row.caption for row in rows])
    contexts = networks["text_encoder"].predict(tokens, verbose=0)
    return [
        {
            "tokens": tokens[index],
            "context": contexts[index],
            "mean": moments[index, ..., :4],
            "log_variance": moments[index, ..., 4:],
        }
        for index in range(count)
    ]


def losses(model: tf.keras.Model, of: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Each creature's mean over four timesteps, with noise that nothing else draws; float64 [N]."""
    rng = np.random.default_rng(2026)
    alphas, found = alphas_cumprod(), []
    for quarter in range(4):
        timesteps = rng.integers(250 * quarter, 250 * (quarter + 1), len(of))
        noise = rng.standard_normal((len(of), *of[0]["mean"].shape)).astype(np.float32)
        alpha = alphas[timesteps][:, None, None, None]
        latent = LATENT_SCALE * np.stack([one["mean"] for one in of])
        predicted = model.predict(
            [
                np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * noise,
                timestep_embedding(timesteps, PRESET.diffusion_model.timestep_width).numpy(),
                np.stack([one["context"] for one in of]),
            ],
            batch_size=16,
            verbose=0,
        )
        found.append(np.mean(np.square(predicted - noise), axis=(1, 2, 3)))
    return np.mean(found, axis=0, dtype=np.float64)


@pytest.mark.slow
def test_the_best_step_of_a_set_that_overfits_is_better_on_creatures_never_seen(
    tmp_path: Path,
) -> None:
    base_model = BaseModel.locate(PRESET, PRESET.image_size, "default")
    networks = {
        name: base_model.build(name)
        for name in ("text_encoder", "image_encoder", "diffusion_model")
    }
    seen = creatures(networks, 0, TRAINED + HELD_OUT)
    fresh = creatures(networks, 1, FRESH)
    trained, held_out = seen[:TRAINED], seen[TRAINED:]
    records = [
        make_latent_example(example_id=f"held-out-{i}", **one).SerializeToString(deterministic=True)
        for i, one in enumerate(held_out)
    ]
    half = HELD_OUT // 2
    parts = (records, records[:half], records[half:])
    config = TrainingConfig(**SETTINGS).resolved(PRESET)
    evaluations = evaluations_for(
        config,
        HeldOutPictures(*(Pictures(len(part), part) for part in parts)),
        PRESET,
        PRESET.image_size,
    )
    empty = networks["text_encoder"].predict(tokenize([""]), verbose=0)[0]
    tuner = FineTuner(networks["diffusion_model"], PRESET, config, empty_caption=tf.constant(empty))

    def batches(first_step: int) -> Iterator[Batch]:
        for step in itertools.count(first_step):
            rng = np.random.default_rng([config.seed, step])
            some = [trained[i] for i in rng.choice(TRAINED, config.batch_size, replace=False)]
            yield {
                "context": tf.constant(np.stack([one["context"] for one in some])),
                "latent/mean": tf.constant(np.stack([one["mean"] for one in some])),
                "latent/log_variance": tf.constant(np.stack([one["log_variance"] for one in some])),
            }

    def on_evaluation(evaluation: Evaluation) -> None:
        print(f"step {evaluation.step}: held out {evaluation.loss:.4f}")

    print(f"base weights: never seen {losses(networks['diffusion_model'], fresh).mean():.4f}")
    tuner.train(batches, str(tmp_path), evaluations=evaluations, on_evaluation=on_evaluation)
    best_step = evaluations.best.step
    found = {}
    for name in ("last", "best"):
        if name == "last":
            tuner.assign_averages()
        else:
            tuner.assign_kept(str(tmp_path), best_step)
        found[name] = [losses(networks["diffusion_model"], of) for of in (fresh, trained)]
        never_seen, learned = (each.mean() for each in found[name])
        print(f"{name}: never seen {never_seen:.4f}, trained on {learned:.4f}")
    low, high = paired_interval(found["best"][0] - found["last"][0])
    print(f"best (step {best_step}) - last, never seen: {low:.4f} to {high:.4f}")
    # What it was trained on it knows better and better, and everything else worse.
    assert found["last"][1].mean() < found["best"][1].mean()
    assert best_step < config.steps
    assert high < 0
