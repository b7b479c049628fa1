"""The autoencoder's reconstructions of held-out pictures; no model with it can draw finer."""

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

    from trainer.data.buckets import BucketLimits
    from trainer.weights.base_model import BaseModel

AUTOENCODER = ("image_encoder", "decoder")
"""The two halves of the autoencoder."""

_MAX_PICTURES = 6
_SHOWN = 128
# Beyond this, a row takes minutes on a CPU.
_MAX_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture as the networks see it, and as decoded from its latent.

    Attributes:
        caption: The whole caption.
        original: The picture at the size of the model, or of its bucket, as a data URI.
        restored: The same picture, decoded from the mean of its latent.
        psnr: Peak signal-to-noise ratio in dB.
        shown: Displayed width and height of both, in pixels.
    """

    caption: str
    original: str
    restored: str
    psnr: float
    shown: tuple[int, int]


def num_pictures(image_size: int) -> int:
    """The number of pictures to show, if a side has `image_size` pixels."""
    return max(1, min(_MAX_PICTURES, _MAX_PIXELS // image_size**2))


def reconstruct(
    base_model: BaseModel, records: Iterable[bytes], limits: BucketLimits | None = None
) -> Iterator[Reconstruction]:
    """Encodes and decodes pictures.

    Args:
        base_model: The model whose autoencoder is used; fine-tuning does not change it.
        records: Serialized examples.
        limits: Limits of the buckets that pictures are scaled and cropped to; `None`: a square.
    """
    encoder, decoder = map(base_model.build, AUTOENCODER)
    for record in records:
        feature = tf.train.Example.FromString(record).features.feature
        picture = decode_image(feature["image/encoded"].bytes_list.value[0])
        size = base_model.image_size if limits is None else limits.bucket_of(*picture.size).size
        original = resize_cover(picture, size)
        restored = _restored(encoder, decoder, original)
        yield Reconstruction(
            feature["caption"].bytes_list.value[0].decode("utf-8", "replace"),
            data_uri(Image.fromarray(original), "PNG"),
            data_uri(Image.fromarray(restored), "PNG"),
            psnr(original, restored),
            _shown(original),
        )


def _shown(picture: np.ndarray) -> tuple[int, int]:
    height, width, _ = picture.shape
    scale = _SHOWN / max(height, width)
    return round(scale * width), round(scale * height)


def psnr(original: np.ndarray, restored: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures; infinite if they are equal."""
    error = np.mean((original.astype(np.float64) - restored) ** 2)
    return float(10.0 * np.log10(255.0**2 / error)) if error else float("inf")


def _restored(encoder: keras.Model, decoder: keras.Model, original: np.ndarray) -> np.ndarray:
    # Imports Keras.
    from trainer.networks.any_size import call_at_any_size

    moments = encoder(to_model_range(original)[None], training=False)
    mean, _ = tf.split(moments, 2, axis=-1)
    pixels = call_at_any_size(decoder, LATENT_SCALE * mean, training=False)[0].numpy()
    restored: np.ndarray = np.clip(np.round(127.5 * pixels + 127.5), 0, 255).astype(np.uint8)
    return restored
