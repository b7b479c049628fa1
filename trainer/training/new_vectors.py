"""Training of only the vectors of a new word (textual inversion, Gal et al. 2022)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.networks.new_vectors import token_embedding
from trainer.networks.seam import compute_as
from trainer.text.new_word import FIRST_NEW_ID, NewWord


class NewVectors:
    """A variable that replaces the last rows of a table; the table itself does not change.

    So optimizer state and gradients exist only for these rows.

    Attributes:
        variables: The trained vectors, float32 [K, width].
    """

    def __init__(self, text_encoder: keras.Model, word: NewWord) -> None:
        """Makes a text encoder look the word up here; call it in the scope of a strategy.

        Args:
            text_encoder: Has the tokens of the word, whose vectors are the initial values.
            word: The word.
        """
        self._layer = token_embedding(text_encoder)
        self._rows = slice(FIRST_NEW_ID, FIRST_NEW_ID + word.vectors)
        self._vectors = tf.Variable(
            tf.convert_to_tensor(self._layer.embeddings)[self._rows], name="new_vectors"
        )
        self._attach()

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return [self._vectors]

    def merge(self) -> None:
        """Writes the vectors into the table, where they are looked up from now on."""
        compute_as(self._layer, keras.layers.Embedding)
        table = tf.convert_to_tensor(self._layer.embeddings)
        vectors = tf.convert_to_tensor(self._vectors)
        parts = [table[: self._rows.start], vectors, table[self._rows.stop :]]
        self._layer.embeddings.assign(tf.concat(parts, axis=0))

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Within this, the table holds the vectors, as on export."""
        before = tf.identity(self._layer.embeddings.value)
        self.merge()
        try:
            yield
        finally:
            self._layer.embeddings.assign(before)
            self._attach()

    def _attach(self) -> None:
        variable, first = self._vectors, self._rows.start
        count = self._rows.stop - first

        class NewWordEmbedding(keras.layers.Embedding):
            def call(self, inputs: tf.Tensor) -> tf.Tensor:
                tokens = tf.cast(inputs, tf.int32)
                is_new = tokens >= first
                known = super().call(tf.where(is_new, 0, tokens))
                # A product with ones and zeros is exact, and its gradient always the same: the
                # gradient of a look-up is added up in whatever order the cores get to it.
                chosen = tf.one_hot(tokens - first, count)
                new = tf.tensordot(chosen, tf.convert_to_tensor(variable), axes=1)
                return tf.where(is_new[..., None], tf.cast(new, known.dtype), known)

        compute_as(self._layer, NewWordEmbedding)
