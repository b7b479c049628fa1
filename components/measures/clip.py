"""CLIP with both towers, which measures how well a picture fits its caption.

Radford et al. 2021. Weights are read as transformers' `CLIPModel` saves them (`config.json`,
`model.safetensors`), which is how they are published on the hub. Stable Diffusion's text tower is
the same network as in `openai/clip-vit-large-patch14`, but it lacks the projection, so it cannot be
used here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.numpy import load_file

from storage.folders import Folder, open_folder
from trainer.weights.errors import WeightsError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Values of every published CLIP, used if the configuration does not give them.
_HEAD_SIZE, _EPSILON, _ACTIVATION = 64, 1e-5, "quick_gelu"
_ACTIVATIONS = {
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
}


def check_clip(address: str) -> str:
    """Checks that the files of a model exist.

    Returns:
        The address; for a model of the hub with its commit, so that it stays the same model.

    Raises:
        WeightsError: A file is missing, or the model is not a CLIP.
    """
    folder = open_folder(address)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not folder.exists(name):
            raise WeightsError(
                f"{folder.shown(name)} is missing: give a model as transformers saves a CLIPModel, "
                "such as hf://openai/clip-vit-base-patch32"
            )
    _Config.read(folder)
    return folder.address


def clip_hash(address: str) -> str:
    """SHA-256 (hex) that identifies a model."""
    folder = open_folder(address)
    hashes = "\n".join(folder.sha256(name) for name in (CONFIG_NAME, WEIGHTS_NAME))
    return hashlib.sha256(hashes.encode()).hexdigest()


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIP scores of pictures and captions, float32 [B], from 0 to 100.

    `100 * max(cosine, 0)`: Hessel et al. 2021, equation 1, with the weight commonly used for
    generated pictures.

    Args:
        images: Embeddings float32 [B, D].
        texts: Embeddings float32 [B, D].
    """
    cosines = np.sum(images * texts, axis=1) / (
        np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    )
    scores: np.ndarray = 100.0 * np.maximum(cosines, 0.0)
    return scores


class Clip:
    """A loaded model."""

    def __init__(self, address: str) -> None:
        """Loads a model: a folder, a `gs://` address or `hf://ORG/NAME[@REVISION][/FOLDER]`.

        Raises:
            WeightsError: It is missing, damaged or not a CLIP.
        """
        folder = open_folder(address)
        config = _Config.read(folder)
        with folder.local(WEIGHTS_NAME) as path:
            try:
                arrays = load_file(path)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{folder.shown(WEIGHTS_NAME)} is damaged: {error}") from None
        try:
            # Some models are published in float16.
            self._vision = _Tower(arrays, "vision_model", config.vision)
            self._text = _Tower(arrays, "text_model", config.text)
            self._image_projection = _float(arrays["visual_projection.weight"].T)
            self._text_projection = _float(arrays["text_projection.weight"].T)
        except KeyError as error:
            raise WeightsError(
                f"{folder.shown(WEIGHTS_NAME)} has no tensor {error}: not a CLIP with two towers"
            ) from None
        self._image_size = config.image_size
        self._embed_images = tf.function(self._images, autograph=False)
        self._embed_tokens = tf.function(self._tokens, autograph=False)

    def image_embeddings(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Embeds the middle square of pictures, uint8 [H, W, 3] each: [B, D]."""
        size = (self._image_size, self._image_size)
        resized = [
            ImageOps.fit(Image.fromarray(image), size, Image.Resampling.BICUBIC) for image in images
        ]
        pixels = np.stack([np.asarray(image, np.float32) for image in resized]) / 255.0
        embeddings: np.ndarray = self._embed_images((pixels - _MEAN) / _DEVIATION).numpy()
        return embeddings

    def text_embeddings(self, tokens: np.ndarray) -> np.ndarray:
        """Embeds captions, tokens int [B, 77] from `trainer.text.tokenizer`: float32 [B, D]."""
        embeddings: np.ndarray = self._embed_tokens(tf.constant(tokens, tf.int32)).numpy()
        return embeddings

    def _images(self, pixels: tf.Tensor) -> tf.Tensor:
        tower = self._vision
        patches = tower["embeddings.patch_embedding.weight"]
        size = patches.shape[-1]
        # PyTorch's order is output, input, height, width.
        features = tf.nn.conv2d(pixels, tf.transpose(patches, [2, 3, 1, 0]), size, "VALID")
        features = tf.reshape(features, [tf.shape(pixels)[0], -1, features.shape[-1]])
        first = tower["embeddings.class_embedding"][None, None]
        first = tf.repeat(first, tf.shape(pixels)[0], axis=0)
        x = tf.concat([first, features], axis=1) + tower["embeddings.position_embedding.weight"]
        # The name is misspelt in every checkpoint.
        x = tower.layers(tower.normalized(x, "pre_layrnorm"), causal=False)
        return tower.normalized(x[:, 0], "post_layernorm") @ self._image_projection

    def _tokens(self, tokens: tf.Tensor) -> tf.Tensor:
        tower = self._text
        x = tf.gather(tower["embeddings.token_embedding.weight"], tokens)
        x += tower["embeddings.position_embedding.weight"][: tf.shape(tokens)[1]]
        x = tower.normalized(tower.layers(x, causal=True), "final_layer_norm")
        # The first end token, whose id is the highest.
        last = tf.gather(x, tf.argmax(tokens, axis=1), batch_dims=1)
        return last @ self._text_projection


@dataclasses.dataclass(frozen=True)
class _TowerConfig:
    heads: int
    epsilon: float
    activation: str

    @classmethod
    def of(cls, config: Mapping[str, Any], width: int) -> _TowerConfig:
        return cls(
            config.get("num_attention_heads", width // _HEAD_SIZE),
            config.get("layer_norm_eps", _EPSILON),
            config.get("hidden_act", _ACTIVATION),
        )


@dataclasses.dataclass(frozen=True)
class _Config:
    image_size: int
    vision: _TowerConfig
    text: _TowerConfig

    @classmethod
    def read(cls, folder: Folder) -> _Config:
        config = folder.read_json(CONFIG_NAME)
        vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
        towers = (
            _TowerConfig.of(vision, vision.get("hidden_size", 768)),
            _TowerConfig.of(text, text.get("hidden_size", 512)),
        )
        if config.get("model_type") != "clip" or {t.activation for t in towers} - {*_ACTIVATIONS}:
            raise WeightsError(
                f"{folder.shown(CONFIG_NAME)} does not describe a supported CLIP (model_type "
                f"{config.get('model_type')!r}): give one as transformers saves a CLIPModel"
            )
        return cls(vision.get("image_size", 224), *towers)


class _Tower:
    """A transformer's weights, and its layers."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str, config: _TowerConfig) -> None:
        prefix = f"{name}."
        self._weights = {
            key.removeprefix(prefix): _float(array)
            for key, array in arrays.items()
            # Old checkpoints contain the position numbers.
            if key.startswith(prefix) and not key.endswith("position_ids")
        }
        if not self._weights:
            raise KeyError(prefix)
        self._config = config
        self._count = len({key.split(".")[2] for key in self._weights if "encoder.layers." in key})

    def __getitem__(self, name: str) -> tf.Tensor:
        return self._weights[name]

    def normalized(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Layer normalization."""
        mean, variance = tf.nn.moments(x, axes=-1, keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + self._config.epsilon)
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]

    def layers(self, x: tf.Tensor, causal: bool) -> tf.Tensor:
        """Applies all layers, float32 [B, T, W] -> float32 [B, T, W]."""
        activation = _ACTIVATIONS[self._config.activation]
        for index in range(self._count):
            name = f"encoder.layers.{index}"
            x += self._attention(self.normalized(x, f"{name}.layer_norm1"), name, causal)
            hidden = self._dense(self.normalized(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
            x += self._dense(activation(hidden), f"{name}.mlp.fc2")
        return x

    def _attention(self, x: tf.Tensor, name: str, causal: bool) -> tf.Tensor:
        heads, length, width = self._config.heads, tf.shape(x)[1], x.shape[-1]

        def split(part: str) -> tf.Tensor:
            projected = self._dense(x, f"{name}.self_attn.{part}_proj")
            shape = [tf.shape(x)[0], length, heads, width // heads]
            return tf.transpose(tf.reshape(projected, shape), [0, 2, 1, 3])

        scores = tf.matmul(split("q"), split("k"), transpose_b=True) * (width // heads) ** -0.5
        if causal:
            seen = tf.linalg.band_part(tf.ones([length, length]), -1, 0)
            scores += (1.0 - seen) * scores.dtype.min
        mixed = tf.transpose(tf.nn.softmax(scores) @ split("v"), [0, 2, 1, 3])
        merged = tf.reshape(mixed, [tf.shape(x)[0], length, width])
        return self._dense(merged, f"{name}.self_attn.out_proj")

    def _dense(self, x: tf.Tensor, name: str) -> tf.Tensor:
        weight = self[f"{name}.weight"]
        return tf.tensordot(x, weight, [[-1], [1]]) + self[f"{name}.bias"]


def _float(array: np.ndarray) -> tf.Tensor:
    return tf.constant(np.ascontiguousarray(array, np.float32))
