"""How much memory a picture takes while it is drawn, from a preset's numbers alone.

Whatever a network holds at once grows with the positions of the latent, but for its attention's
scores, which grow with their square. What each part could hold is therefore counted in float32
values for one position, or for a pair of them, and the most of it added up: what is never there at
the same moment, too. tests/trainer/test_drawing_memory.py holds that against the tensors of the
exported graphs.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import tensorflow as tf

from trainer.presets import DiffusionModelDimensions, Preset

_FLOAT32 = 4
# In a block: what comes in, normalized, squared, activated and padded; what the convolutions give.
_COPIES_IN, _COPIES_OUT = 5, 3
# In a transformer: what comes in and is added in the end, query, key, value, what is attended to,
# and the gated unit's two halves, each four times as wide, with what its activation needs.
_TRANSFORMER_COPIES = 8 + 6 * 4
# A patch of a convolution that is computed as a matrix product.
_PATCH = 9
# Of attention, scores and weights.
_SCORES = 2

DIFFUSION_MODEL, DECODER, IMAGE_ENCODER = range(3)
"""Places of the networks in a `DrawingMemory`."""
TOGETHER_BYTES = 8 * 10**9
"""What pictures that are drawn together may take at most; one is drawn whatever it takes."""

_Number = TypeVar("_Number", float, tf.Tensor)


@dataclasses.dataclass(frozen=True)
class DrawingMemory:
    """Bytes that one picture takes besides the weights, by the number of positions of its latent.

    Attributes:
        per_position: Of the diffusion model and of the decoder, for each position; and of the image
            encoder, where drawing begins with a picture.
        per_pair: Of the same, for each pair of positions.
    """

    per_position: tuple[float, ...]
    per_pair: tuple[float, ...]

    @classmethod
    def of(cls, preset: Preset, *, image_to_image: bool = False) -> DrawingMemory:
        """That of a preset's networks, with or without the image encoder."""
        found = [_of_diffusion_model(preset), _of_decoder(preset)]
        if image_to_image:
            found.append(_of_image_encoder(preset))
        return cls(*zip(*found, strict=True))

    def of_networks(self, positions: _Number) -> tuple[_Number, ...]:
        """Bytes of each network, of which no two run at the same time.

        Args:
            positions: Of the latent; a number, or float64 [] for as much in a graph.
        """
        return tuple(
            linear * positions + squared * positions * positions
            for linear, squared in zip(self.per_position, self.per_pair, strict=True)
        )

    def together(self, network: int, positions: tf.Tensor) -> tf.Tensor:
        """How many pictures a network may be given at once: int32 [], 1 or more.

        Args:
            network: Its place in `per_position`.
            positions: Of each picture's latent, float64 [].
        """
        fitting = tf.floor(TOGETHER_BYTES / self.of_networks(positions)[network])
        # More rows than a request has do no harm, but more than an int32 holds do.
        return tf.cast(tf.clip_by_value(fitting, 1.0, 2.0**16), tf.int32)


def _of_diffusion_model(preset: Preset) -> tuple[float, float]:
    """Bytes for a position and for a pair, of the two predictions of a guided step."""
    dimensions = preset.diffusion_model
    widths = dimensions.widths
    blocks, transformers, scores = [], [], []
    for level, width in enumerate(widths):
        beside = (*widths[max(0, level - 1) : level + 2],)
        widest = width + max(beside)
        blocks.append(((_COPIES_IN + _PATCH) * widest + _COPIES_OUT * width) / 4**level)
        if dimensions.cross_attention[level] or level == len(widths) - 1:
            of_heads = _SCORES * dimensions.heads(level)
            to_text = of_heads * preset.text_encoder.max_length
            transformers.append((_TRANSFORMER_COPIES * width + to_text) / 4**level)
            scores.append(of_heads / 16**level)
    linear = _skips(dimensions) + max(blocks) + max(transformers)
    return 2 * _FLOAT32 * linear, 2 * _FLOAT32 * max(scores)


def _skips(dimensions: DiffusionModelDimensions) -> float:
    """Values for a position that wait for the way up."""
    last = len(dimensions.widths) - 1
    kept: float = dimensions.widths[0]
    for level, width in enumerate(dimensions.widths):
        kept += dimensions.num_blocks * width / 4**level
        if level < last:
            kept += width / 4 ** (level + 1)
    return kept


def _of_decoder(preset: Preset) -> tuple[float, float]:
    widths = tuple(reversed(preset.decoder.widths))
    blocks = [
        4**level * (_COPIES_IN * widths[max(0, level - 1)] + _COPIES_OUT * width)
        for level, width in enumerate(widths)
    ]
    return _FLOAT32 * max(blocks), _FLOAT32 * _SCORES


def _of_image_encoder(preset: Preset) -> tuple[float, float]:
    widths = preset.image_encoder.widths
    blocks = [
        4 ** (len(widths) - 1 - level)
        * (_COPIES_IN * max(width, widths[max(0, level - 1)]) + _COPIES_OUT * width)
        for level, width in enumerate(widths)
    ]
    return _FLOAT32 * max(blocks), _FLOAT32 * _SCORES
