"""How much memory a picture takes while it is drawn, computed only from the numbers of a preset.

Whatever a network holds at once grows with the positions of the latent, except for the attention
scores, which grow with their square. So each part is counted in float32 values for one position, or
for a pair of positions, and the largest are added up, even if they are never in memory at the same
moment. tests/trainer/test_drawing_memory.py compares the result with the tensors of the exported
graphs.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import tensorflow as tf

from trainer.presets import DiffusionModelDimensions, Preset

_FLOAT32 = 4
# In a block: the input, normalized, squared, activated and padded; the outputs of the convolutions.
_COPIES_IN, _COPIES_OUT = 5, 3
# In a transformer: the input that is added at the end, query, key, value, the attended context, and
# the two halves of the gated unit, each four times as wide, with the memory of its activation.
_TRANSFORMER_COPIES = 8 + 6 * 4
# A patch of a convolution that is computed as a matrix product.
_PATCH = 9
# Scores and weights of attention.
_SCORES = 2

DIFFUSION_MODEL, DECODER, IMAGE_ENCODER = range(3)
"""Places of the networks in a `DrawingMemory`."""
TOGETHER_BYTES = 8 * 10**9
"""The most that pictures drawn together may take; a single one is always drawn."""

_Number = TypeVar("_Number", float, tf.Tensor)


@dataclasses.dataclass(frozen=True)
class DrawingMemory:
    """Bytes that one picture takes in addition to the weights, by the positions of its latent.

    Attributes:
        per_position: Bytes of the diffusion model and the decoder for each position; also of the
            image encoder, if drawing begins with a picture.
        per_pair: Bytes of the same networks for each pair of positions.
    """

    per_position: tuple[float, ...]
    per_pair: tuple[float, ...]

    @classmethod
    def of(cls, preset: Preset, *, image_to_image: bool = False) -> DrawingMemory:
        """The memory of the networks of a preset, with or without the image encoder."""
        found = [_of_diffusion_model(preset), _of_decoder(preset)]
        if image_to_image:
            found.append(_of_image_encoder(preset))
        return cls(*zip(*found, strict=True))

    def of_networks(self, positions: _Number) -> tuple[_Number, ...]:
        """Bytes of each network; no two of them run at the same time.

        Args:
            positions: Positions of the latent; a number, or float64 [] in a graph.
        """
        return tuple(
            linear * positions + squared * positions * positions
            for linear, squared in zip(self.per_position, self.per_pair, strict=True)
        )

    def together(self, network: int, positions: tf.Tensor) -> tf.Tensor:
        """How many pictures a network may be given at once: int32 [], 1 or more.

        Args:
            network: Its index in `per_position`.
            positions: Positions in the latent of each picture, float64 [].
        """
        fitting = tf.floor(TOGETHER_BYTES / self.of_networks(positions)[network])
        # More rows than a request has do no harm, but more than an int32 can hold would.
        return tf.cast(tf.clip_by_value(fitting, 1.0, 2.0**16), tf.int32)


def _of_diffusion_model(preset: Preset) -> tuple[float, float]:
    """Bytes per position and per pair, for the two predictions of a guided step."""
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
    """Values per position that are kept for the way up."""
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
