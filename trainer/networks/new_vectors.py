"""Text encoders with vectors for a word that the vocabulary lacks."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from trainer.networks.seam import CLIPEmbedding
from trainer.networks.text_encoder import build_text_encoder
from trainer.presets import Preset


def with_more_tokens(preset: Preset, number: int) -> Preset:
    """A preset whose text encoder has `number` more tokens after the vocabulary."""
    text = preset.text_encoder
    text = dataclasses.replace(text, vocabulary_size=text.vocabulary_size + number)
    return dataclasses.replace(preset, text_encoder=text)


def token_embedding(text_encoder: keras.Model) -> keras.layers.Embedding:
    """The layer with the token vectors of a text encoder, [vocabulary, width]."""
    [embedding] = [layer for layer in text_encoder.layers if isinstance(layer, CLIPEmbedding)]
    layer: keras.layers.Embedding = embedding.token_embedding
    return layer


def with_vectors(text_encoder: keras.Model, preset: Preset, vectors: np.ndarray) -> keras.Model:
    """The same text encoder with more tokens.

    Args:
        text_encoder: Built from `preset`.
        preset: The preset, with its number of tokens.
        vectors: float32 [K, width], the vectors of the new tokens.
    """
    model = build_text_encoder(with_more_tokens(preset, len(vectors)))
    table = token_embedding(model).embeddings
    for variable, former in zip(model.weights, text_encoder.weights, strict=True):
        value = np.asarray(former)
        variable.assign(np.concatenate([value, vectors]) if variable is table else value)
    return model
