"""The two frozen encoders of a preset, whose results do not depend on the rest of the batch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from trainer.text.tokenizer import tokenize

if TYPE_CHECKING:
    from trainer.weights.base_model import BaseModel

# The image encoder has a few hundred activations per pixel.
_BATCH_PIXELS = 1 << 20
_MAX_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Moments:
    """The image encoder's output for N pictures: float32 [N, h, w, 4].

    Attributes:
        mean: Mean of the posterior.
        log_variance: Log variance of the posterior.
        mirror_mean: Mean for the mirror images; `None` if these are not encoded.
        mirror_log_variance: Log variance for the mirror images; likewise.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    mirror_mean: np.ndarray | None = None
    mirror_log_variance: np.ndarray | None = None

    def of(self, row: int) -> Moments:
        """The output for one of the pictures: float32 [h, w, 4]."""
        return Moments(**{name: values[row] for name, values in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are not `None`, by name."""
        every = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: values for name, values in every if values is not None}


class Encoders:
    """The text encoder and the image encoder.

    A picture or caption is encoded to the same bits whatever is encoded with it. On a CPU, kernels
    round differently at another position in a batch, and larger batches are no faster, so each
    picture or caption is a batch of its own. On a GPU, every batch has the same size.

    Attributes:
        batch_size: The best number of pictures, or captions, to encode at once.
    """

    def __init__(self, base_model: BaseModel, flip: bool) -> None:
        """Builds the networks and loads their weights.

        Args:
            base_model: The model whose encoders are used, with the size of the pictures.
            flip: Whether to also encode mirror images.
        """
        text_encoder = base_model.build("text_encoder")
        image_encoder = base_model.build("image_encoder")
        self._image_size = image_size = base_model.image_size
        self._length = length = base_model.preset.text_encoder.max_length
        at_once = min(_MAX_BATCH_SIZE, _BATCH_PIXELS // image_size**2)
        self.batch_size = max(1, at_once) if tf.config.list_physical_devices("GPU") else 1

        def moments(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tuple(tf.split(image_encoder(images, training=False), 2, axis=-1))

        def encode_pictures(images: tf.Tensor) -> dict[str, tf.Tensor]:
            mean, log_variance = moments(images)
            encoded = {"mean": mean, "log_variance": log_variance}
            if flip:
                mean, log_variance = moments(tf.reverse(images, axis=[2]))
                encoded |= {"mirror_mean": mean, "mirror_log_variance": log_variance}
            return encoded

        @tf.function(input_signature=[tf.TensorSpec([None, length], tf.int32)], autograph=False)
        def encode_captions(tokens: tf.Tensor) -> tf.Tensor:
            return text_encoder(tokens, training=False)

        @functools.cache
        def encode_pictures_of(height: int, width: int) -> Callable[..., dict[str, tf.Tensor]]:
            signature = [tf.TensorSpec([None, height, width, 3], tf.float32)]
            traced: Callable[..., dict[str, tf.Tensor]] = tf.function(
                encode_pictures, input_signature=signature, autograph=False
            )
            return traced

        self._encode_pictures_of, self._encode_captions = encode_pictures_of, encode_captions

    def pictures(self, images: Sequence[np.ndarray]) -> Moments:
        """Encodes at most `batch_size` pictures of one size: float32 [H, W, 3] in [-1, 1]."""
        height, width, _ = images[0].shape
        encoded = self._encode_pictures_of(height, width)(self._filled_up(images))
        return Moments(**{name: t.numpy()[: len(images)] for name, t in encoded.items()})

    def captions(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Encodes captions.

        Args:
            tokens: Tokens of at most `batch_size` captions, int32 [V, L] each, with V variants.

        Returns:
            float32 [N, V, L, D].
        """
        filled_up = self._filled_up(tokens)
        flat = self._encode_captions(filled_up.reshape(-1, self._length)).numpy()
        context: np.ndarray = flat.reshape(*filled_up.shape, -1)
        return context[: len(tokens)]

    @functools.cached_property
    def numerics(self) -> str:
        """A digest of what the encoders compute here, to the last bit of their float32 outputs.

        It tells whether latents made elsewhere are the ones that would be made here. This depends
        on the processor, its number of cores, and the versions and settings of libraries. If a
        result depends on its position in a batch or changes from call to call, every digest is
        different.
        """
        noise = np.random.default_rng(0)
        shape = (self.batch_size, self._image_size, self._image_size, 3)
        images = list(noise.uniform(-1.0, 1.0, shape).astype(np.float32))
        texts = [f"picture {index} of a creature" for index in range(self.batch_size)]
        tokens = list(tokenize(texts, self._length)[:, None])
        digest = hashlib.sha256()
        for made, again in zip(
            (*self.pictures(images).arrays().values(), self.captions(tokens)),
            (
                *self.pictures(images[1:] + images[:1]).arrays().values(),
                self.captions(tokens[1:] + tokens[:1]),
            ),
            strict=True,
        ):
            if not np.array_equal(made, np.roll(again, 1, axis=0)):
                return uuid.uuid4().hex
            digest.update(made.tobytes())
        return digest.hexdigest()[:32]

    def _filled_up(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """A full batch, padded by repeating the last row."""
        return np.stack([*rows, *[rows[-1]] * (self.batch_size - len(rows))])
