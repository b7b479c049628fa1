"""Text encoders with vectors for a word that the vocabulary lacks."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from trainer.networks.seam import CLIPEmbedding
from trainer.networks.text_encoder import build_text_encoder
from trainer.presets import Preset


def with_more_tokens(preset: Preset, number: int) -> Preset:
    """A preset whose text encoder has so many tokens behind those of the vocabulary."""
    text = preset.text_encoder
    text = dataclasses.replace(text, vocabulary_size=text.vocabulary_size + number)
    return dataclasses.replace(preset, text_encoder=text)


def token_embedding(text_encoder: keras.Model) -> keras.layers.Embedding:
    """The layer with a text encoder's vectors, [vocabulary, width], one for each token."""
    [embedding] = [layer for layer in text_encoder.layers if isinstance(layer, CLIPEmbedding)]
    layer: keras.layers.Embedding = embedding.token_embedding
    return layer


def with_vectors(text_encoder: keras.Model, preset: Preset, vectors: np.ndarray) -> keras.Model:
    """A text encoder with more tokens, and else the same.

    Args:
        text_encoder: Built from `preset`.
        preset: Says how many tokens it has.
        vectors: float32 [K, width], those of the new tokens.
    """
    model = build_text_encoder(with_more_tokens(preset, len(vectors)))
    table = token_embedding(model).embeddings
    for variable, former in zip(model.weights, text_encoder.weights, strict=True):
        value = np.asarray(former)
        variable.assign(np.concatenate([value, vectors]) if variable is table else value)
    return model
