"""A classifier of creature pictures, and the words of captions that it is compared with."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.colours import COLOURS
from data.drawing import FEATURES, IMAGE_SIZE, SHAPES

if TYPE_CHECKING:
    import keras

EYES = (1, 2, 3)
ALL_FEATURES = tuple(name for names in FEATURES.values() for name in names)
"""Names of a creature's features, in the order of the network's output."""

WEIGHTS = Path(__file__).parent / "reader.safetensors"

SIZES = (len(COLOURS), len(SHAPES), len(EYES), len(ALL_FEATURES))
_ENDS = tuple(np.cumsum(SIZES))
_WIDTHS = (16, 32, 64, 128)
_BATCH_SIZE = 32
_CREATURE = re.compile(rf"\b({'|'.join(SHAPES)}) ({'|'.join(COLOURS)}) creature\b")
_FEATURE = re.compile(rf"\b({'|'.join(ALL_FEATURES)})\b")
_EYES = re.compile(r"\b(?:(one) big eye|(three) eyes)\b")


@dataclasses.dataclass(frozen=True)
class Looks:
    """What a creature looks like.

    Attributes:
        colour: One of `data.colours.COLOURS`.
        shape: One of `data.drawing.SHAPES`.
        num_eyes: 1, 2 or 3.
        features: Some of `data.drawing.FEATURES`.
    """

    colour: str
    shape: str
    num_eyes: int
    features: frozenset[str]


def described(caption: str) -> Looks | None:
    """What a caption of the sample dataset describes; `None` for any other caption.

    A caption that does not mention eyes means two eyes.
    """
    # The caption is decoded from its tokens, and the hyphen is a token of its own.
    caption = caption.replace(" - ", "-")
    if (creature := _CREATURE.search(caption)) is None:
        return None
    shape, colour = creature.groups()
    eyes = _EYES.search(caption)
    num_eyes = 2 if eyes is None else 1 if eyes.group(1) else 3
    return Looks(colour, shape, num_eyes, frozenset(_FEATURE.findall(caption)))


def build_reader() -> keras.Model:
    """Builds the network.

    Returns:
        A model from pictures, float32 [B, 128, 128, 3] in [-1, 1], to logits, float32 [B, 30]:
        colours, shapes and numbers of eyes, with exactly one of each true, and features.
    """
    import keras

    x = image = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    for level, width in enumerate(_WIDTHS):
        for stride in (2, 1) if level else (2,):
            x = keras.layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
    pooled = [
        keras.layers.GlobalAveragePooling2D()(x),
        keras.layers.GlobalMaxPooling2D()(x),
    ]
    x = keras.layers.Dense(_WIDTHS[-1], activation="relu")(keras.layers.Concatenate()(pooled))
    return keras.Model(image, keras.layers.Dense(sum(SIZES))(x))


class CreatureReader:
    """The shipped network, loaded."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        """Loads the network.

        Args:
            weights: File of weights as `training` writes it.
        """
        import tensorflow as tf
        from safetensors.numpy import load_file

        model = build_reader()
        arrays = load_file(weights)
        model.set_weights([arrays[str(i)].astype(np.float32) for i in range(len(arrays))])

        @tf.function(autograph=False)
        def logits(images: tf.Tensor) -> tf.Tensor:
            size = (IMAGE_SIZE, IMAGE_SIZE)
            pixels = tf.image.resize(tf.cast(images, tf.float32), size, antialias=True)
            return model(pixels / 127.5 - 1.0, training=False)

        self._logits = logits

    def __call__(self, images: np.ndarray) -> list[Looks]:
        """Returns what the pictures show.

        Args:
            images: uint8 [B, H, W, 3] of one size.
        """
        found: list[Looks] = []
        for start in range(0, len(images), _BATCH_SIZE):
            found += looks(self._logits(images[start : start + _BATCH_SIZE]).numpy())
        return found


@functools.cache
def shipped_reader() -> CreatureReader:
    """The reader, loaded once per process for all measures that use it."""
    return CreatureReader()


def looks(logits: np.ndarray) -> list[Looks]:
    """The most likely look of each creature.

    Args:
        logits: float32 [B, 30]; see `build_reader`.
    """
    colours, shapes, eyes, features = np.split(logits, _ENDS[:-1], axis=1)
    names = tuple(COLOURS)
    return [
        Looks(
            names[int(colour)],
            SHAPES[int(shape)],
            EYES[int(num_eyes)],
            frozenset(name for name, yes in zip(ALL_FEATURES, there, strict=True) if yes),
        )
        for colour, shape, num_eyes, there in zip(
            colours.argmax(1), shapes.argmax(1), eyes.argmax(1), features > 0, strict=True
        )
    ]


def targets(creatures: Sequence[Looks]) -> np.ndarray:
    """Targets for the logits: float32 [B, 30], 1 for what is true and 0 for what is not."""
    result = np.zeros((len(creatures), sum(SIZES)), np.float32)
    colours, shapes, eyes, features = np.split(result, _ENDS[:-1], axis=1)
    names = tuple(COLOURS)
    for row, creature in enumerate(creatures):
        colours[row, names.index(creature.colour)] = 1
        shapes[row, SHAPES.index(creature.shape)] = 1
        eyes[row, EYES.index(creature.num_eyes)] = 1
        for name in creature.features:
            features[row, ALL_FEATURES.index(name)] = 1
    return result
