"""What the autoencoder makes of held-out pictures: no model that it is part of can draw finer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from PIL import Image

from components.pages.page import data_uri
from storage.images import decode_image, resize_cover, to_model_range
from trainer.presets import LATENT_SCALE

if TYPE_CHECKING:
    import keras

    from trainer.weights.base_model import BaseModel

AUTOENCODER = ("image_encoder", "decoder")
"""Its two halves."""

_MAX_PICTURES = 6
# Beyond, a row takes minutes on a CPU.
_MAX_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture as the networks see it, and as it comes back from its latent.

    Attributes:
        caption: The whole caption.
        original: The picture in the model's size, as a data URI.
        restored: The same out of the mean of its latent.
        psnr: Peak signal-to-noise ratio in dB.
    """

    caption: str
    original: str
    restored: str
    psnr: float


def num_pictures(image_size: int) -> int:
    """How many pictures of that many pixels a side are shown."""
    return max(1, min(_MAX_PICTURES, _MAX_PIXELS // image_size**2))


def reconstruct(base_model: BaseModel, records: Iterable[bytes]) -> Iterator[Reconstruction]:
    """Encodes and decodes pictures.

    Args:
        base_model: Its autoencoder is used, which fine-tuning leaves as it is.
        records: Serialized examples.
    """
    encoder, decoder = map(base_model.build, AUTOENCODER)
    for record in records:
        feature = tf.train.Example.FromString(record).features.feature
        picture = decode_image(feature["image/encoded"].bytes_list.value[0])
        original = resize_cover(picture, base_model.image_size)
        restored = _restored(encoder, decoder, original)
        yield Reconstruction(
            feature["caption"].bytes_list.value[0].decode("utf-8", "replace"),
            data_uri(Image.fromarray(original), "PNG"),
            data_uri(Image.fromarray(restored), "PNG"),
            psnr(original, restored),
        )


def psnr(original: np.ndarray, restored: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, uint8; infinite for equal ones."""
    error = np.mean((original.astype(np.float64) - restored) ** 2)
    return float(10.0 * np.log10(255.0**2 / error)) if error else float("inf")


def _restored(encoder: keras.Model, decoder: keras.Model, original: np.ndarray) -> np.ndarray:
    moments = encoder(to_model_range(original)[None], training=False)
    mean, _ = tf.split(moments, 2, axis=-1)
    pixels = decoder(LATENT_SCALE * mean, training=False)[0].numpy()
    restored: np.ndarray = np.clip(np.round(127.5 * pixels + 127.5), 0, 255).astype(np.uint8)
    return restored
