"""Batches whose rows have different sizes, as strings; see `saved_models`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from trainer.presets import LATENT_CHANNELS

_LATENT = (None, None, LATENT_CHANNELS)


@dataclasses.dataclass(frozen=True)
class Latents:
    """Latents of any sizes.

    Attributes:
        texts: string [B], as `tf.io.serialize_tensor` wrote float32 [h, w, 4]; empty for none.
        sides: int32 [B, 2], heights and widths; 0 for none.
    """

    texts: tf.Tensor
    sides: tf.Tensor

    @classmethod
    def of(cls, texts: tf.Tensor) -> Latents:
        """The latents in texts, string [B]."""
        return cls(texts, _sides(texts, texts != "", _latent))

    def gathered(self, places: tf.Tensor) -> tf.Tensor:
        """float32 [G, h, w, 4], the latents at some places, int64 [G], which all have one size."""
        spec = tf.TensorSpec(_LATENT, tf.float32)
        latents = tf.map_fn(_latent, tf.gather(self.texts, places), fn_output_signature=spec)
        return tf.ensure_shape(latents, [None, *_LATENT])


def texts_of(latents: tf.Tensor) -> tf.Tensor:
    """Texts, string [B], from latents float32 [B, h, w, 4]."""
    return tf.map_fn(tf.io.serialize_tensor, latents, fn_output_signature=tf.string)


def picture_sides(files: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
    """Heights and widths, int32 [B, 2], of PNG files, string [B]; 0 if there is none."""
    return _sides(files, there, tf.io.decode_png)


def in_groups(
    sides: tf.Tensor,
    wanted: tf.Tensor,
    together: Callable[[tf.Tensor], tf.Tensor],
    draw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Draws rows of one size together, one size after another.

    Args:
        sides: int32 [B, 2], height and width of each row.
        wanted: bool [B]; no other row is drawn.
        together: From a height and width, int32 [2], to the number of such rows that may be drawn
            at once, int32 [].
        draw: From the places of some rows, int64 [G], and their height and width, int32 [2], to
            their results, string [G].

    Returns:
        string [B]; empty if a row is not wanted.
    """

    def group(waiting: tf.Tensor, drawn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        side = sides[tf.argmax(tf.cast(waiting, tf.int32))]
        alike = waiting & tf.reduce_all(sides == side, axis=-1)
        places = tf.where(alike)[: together(side), 0]
        index = places[:, None]
        done = tf.zeros_like(places, tf.bool)
        return (
            tf.tensor_scatter_nd_update(waiting, index, done),
            tf.tensor_scatter_nd_update(drawn, index, draw(places, side)),
        )

    nothing = tf.fill(tf.shape(wanted), "")
    _, drawn = tf.while_loop(
        lambda waiting, _: tf.reduce_any(waiting),
        group,
        (wanted, nothing),
        # Two groups at once would take the memory of both.
        parallel_iterations=1,
    )
    return drawn


def problem_where(wrong: tf.Tensor, what: str, given: tf.Tensor, problem: tf.Tensor) -> tf.Tensor:
    """Adds the problem of some rows to problems, string [B]; the first one of a row is kept.

    Args:
        wrong: bool [B].
        what: The requirement that a row must meet.
        given: The values of the rows, [B].
        problem: The problems so far; empty for rows without one.
    """
    written = given if given.dtype == tf.string else tf.strings.as_string(given)
    return tf.where(
        wrong & (problem == ""), tf.strings.join([f"{what}, and is ", written]), problem
    )


def _latent(text: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.io.parse_tensor(text, tf.float32), _LATENT)


def _sides(texts: tf.Tensor, there: tf.Tensor, read: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    def of_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        text, is_there = row
        return tf.cond(is_there, lambda: tf.shape(read(text))[:2], lambda: tf.zeros([2], tf.int32))

    spec = tf.TensorSpec([2], tf.int32)
    return tf.map_fn(of_row, (texts, there), fn_output_signature=spec)
