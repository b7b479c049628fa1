"""Trains the reader on fresh drawings: `python -m components.measures.creature_reader.training`.

They contain no creature of the sample dataset. Half of them are blurred and noisy, like the
pictures that a small model draws.
"""

from __future__ import annotations

import argparse
import collections
import io
import itertools
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.measures.creature_reader.reader import (
    ALL_FEATURES,
    EYES,
    SIZES,
    WEIGHTS,
    CreatureReader,
    Looks,
    build_reader,
    described,
    targets,
)
from data.colours import COLOURS
from data.drawing import EXPRESSIONS, FEATURES, IMAGE_SIZE, SHAPES, Creature, draw_creature
from data.generate import Row, make_rows

_BATCH_SIZE = 64
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 100
_STEPS_AHEAD = 8
_SAMPLE_SEED = 0


def looks_of(creature: Creature) -> Looks:
    """What the reader should say about a creature."""
    features = frozenset(name for name, _ in creature.features)
    return Looks(creature.colour, creature.shape, creature.num_eyes, features)


def invent(rng: np.random.Generator) -> Creature:
    """A creature with zero to two features; all looks are about equally frequent."""
    colours = tuple(COLOURS)
    colour = str(rng.choice(colours))
    places = rng.permutation(len(FEATURES))[: int(rng.choice(3, p=(0.1, 0.4, 0.5)))]
    groups = tuple(FEATURES.values())
    others = [name for name in colours if name != colour]
    return Creature(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        features=tuple(
            (str(rng.choice(groups[place])), str(rng.choice(others))) for place in sorted(places)
        ),
        expression=str(rng.choice(EXPRESSIONS)),
        num_eyes=int(rng.choice(EYES)),
    )


def worn(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A picture as a small model might draw it (blurred, noisy, wrong colours), or unchanged."""
    if rng.random() < 0.5:
        return np.asarray(image)
    side = int(rng.integers(32, IMAGE_SIZE))
    small = image.resize((side, side), Image.Resampling.BOX)
    blurred = small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(blurred, np.float32) * rng.uniform(0.9, 1.1, 3)
    pixels += rng.normal(0.0, rng.uniform(0.0, 10.0), pixels.shape)
    return np.clip(pixels, 0.0, 255.0).astype(np.uint8)


def batch_of(seed: int, step: int, left_out: frozenset[Creature]) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a step, uint8 [B, 128, 128, 3], and their targets, without `left_out`."""
    rng = np.random.default_rng([seed, step])
    fresh = (c for c in iter(lambda: invent(rng), None) if c not in left_out)
    creatures = list(itertools.islice(fresh, _BATCH_SIZE))
    pictures = np.stack([worn(draw_creature(creature, rng), rng) for creature in creatures])
    return pictures, targets([looks_of(creature) for creature in creatures])


def _batches(
    seed: int, steps: int, left_out: frozenset[Creature]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`batch_of` for every step, made in another process, a few steps ahead."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        made: collections.deque[Any] = collections.deque()
        for step in range(steps):
            made.append(pool.apply_async(batch_of, (seed, step, left_out)))
            if len(made) > _STEPS_AHEAD:
                yield made.popleft().get()
        while made:
            yield made.popleft().get()


def train(steps: int, seed: int, out: Path) -> None:
    """Trains a reader and writes its weights, float16, to `out`."""
    import keras
    import tensorflow as tf
    from safetensors.numpy import save_file

    keras.utils.set_random_seed(seed)
    model = build_reader()
    rates = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=_LEARNING_RATE, warmup_steps=min(_WARMUP_STEPS, steps // 2)
    )
    optimizer = keras.optimizers.AdamW(rates, weight_decay=1e-2)

    @tf.function(autograph=False)
    def step(images: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(tf.cast(images, tf.float32) / 127.5 - 1.0, training=True)
            *one_each, features = zip(
                tf.split(logits, SIZES, axis=1), tf.split(truth, SIZES, axis=1), strict=True
            )
            losses = [tf.nn.softmax_cross_entropy_with_logits(yes, said) for said, yes in one_each]
            said, yes = features
            losses.append(tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(yes, said), axis=1))
            loss = tf.reduce_mean(tf.add_n(losses))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_weights), model.trainable_weights, strict=True)
        )
        return loss

    left_out = frozenset(row.creature for row in make_rows(_SAMPLE_SEED))
    losses = []
    for number, batch in enumerate(_batches(seed, steps, left_out), 1):
        losses.append(float(step(*batch)))
        if number % 100 == 0:
            sys.stdout.write(f"step {number} of {steps}: loss {np.mean(losses[-100:]):.4f}\n")
            sys.stdout.flush()
    arrays = {str(i): array.astype(np.float16) for i, array in enumerate(model.get_weights())}
    save_file(arrays, out)


def accuracy(reader: CreatureReader, rows: Sequence[Row]) -> dict[str, float]:
    """How often the reader is right about rows of the sample dataset, for each attribute."""
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row.png))) for row in rows])
    pairs = list(zip(reader(pictures), (described(row.caption) for row in rows), strict=True))
    right = {
        "colour": [said.colour == true.colour for said, true in pairs if true],
        "shape": [said.shape == true.shape for said, true in pairs if true],
        "eyes": [said.num_eyes == true.num_eyes for said, true in pairs if true],
    }
    for name in ALL_FEATURES:
        right[name] = [(name in s.features) == (name in t.features) for s, t in pairs if t]
    right["all features"] = [said.features == true.features for said, true in pairs if true]
    return {name: float(np.mean(values)) for name, values in right.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m components.measures.creature_reader.training", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="of 64 drawings (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which drawings (%(default)s)")
    options = parser.parse_args(arguments)
    train(options.steps, options.seed, options.out)
    for name, share in accuracy(CreatureReader(options.out), make_rows(_SAMPLE_SEED)).items():
        sys.stdout.write(f"{name:>12}: {share:.1%} of the sample dataset right\n")


if __name__ == "__main__":
    main()
