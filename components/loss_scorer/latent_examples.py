"""Examples as LatentGen writes them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from trainer.presets import Preset

_AT_A_TIME = 16


@dataclasses.dataclass(frozen=True)
class LatentExample:
    """One record.

    Attributes:
        id: The example's content hash.
        tokens: int64 [77], of the caption.
        context: float32 [77, D], from the text encoder of the base weights.
        mean: float32 [h, w, 4], from the image encoder.
        log_variance: float32 [h, w, 4], from the image encoder.
    """

    id: str
    tokens: np.ndarray
    context: np.ndarray
    mean: np.ndarray
    log_variance: np.ndarray


def read_examples(
    serialized: Iterable[bytes], preset: Preset, image_size: int, caption_variants: int = 1
) -> Iterator[LatentExample]:
    """Parses records, a few at a time; if a caption has several variants, the first counts."""
    # Imports Keras.
    from trainer.data.latents import parse_latents, size_of

    records = iter(serialized)
    while some := list(itertools.islice(records, _AT_A_TIME)):
        for size, alike in itertools.groupby(some, lambda record: size_of(record, image_size)):
            parsed = parse_latents(
                tf.constant(list(alike)), preset, size, caption_variants=caption_variants
            )
            if caption_variants > 1:
                parsed |= {name: parsed[name][:, 0] for name in ("tokens", "context")}
            names = ("id", "tokens", "context", "latent/mean", "latent/log_variance")
            for example_id, *arrays in zip(*(parsed[name].numpy() for name in names), strict=True):
                yield LatentExample(example_id.decode(), *arrays)


def of_one_shape(examples: Iterable[LatentExample], most: int) -> Iterator[list[LatentExample]]:
    """Lists of `most` examples whose latents have one shape; shorter lists come last."""
    waiting: dict[tuple[int, ...], list[LatentExample]] = {}
    for example in examples:
        alike = waiting.setdefault(example.mean.shape, [])
        alike.append(example)
        if len(alike) == most:
            yield waiting.pop(example.mean.shape)
    yield from waiting.values()
