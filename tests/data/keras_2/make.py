"""Weight files as Keras 2 writes them, with what its networks compute: run by hand, and by tests.

    python tests/data/keras_2/make.py --size tiny --output tests/data/keras_2

Keras 2 is `tf_keras`, on which KerasCV's layers are built where TF_USE_LEGACY_KERAS is 1. The tiny
networks are KerasCV's in its own order of layers; the full ones are its own classes. Every tensor
is random, so that none can be taken for another.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from keras_cv.src.backend import keras
from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
from keras_cv.src.models.stable_diffusion.decoder import Decoder
from keras_cv.src.models.stable_diffusion.diffusion_model import (
    DiffusionModel,
    ResBlock,
    SpatialTransformer,
    Upsample,
)
from keras_cv.src.models.stable_diffusion.image_encoder import ImageEncoder
from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock
from keras_cv.src.models.stable_diffusion.text_encoder import (
    CLIPEmbedding,
    CLIPEncoderLayer,
    TextEncoder,
    quick_gelu,
)

_layers = keras.layers
_NETWORKS = ("text_encoder", "image_encoder", "diffusion_model", "decoder")
_GROUPS = 4


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), required=True)
    parser.add_argument("--network", choices=_NETWORKS, action="append")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arrays: dict[str, np.ndarray] = {}
    for network in arguments.network or _NETWORKS:
        rng = np.random.default_rng(_NETWORKS.index(network))
        keras.backend.clear_session()
        model = (_tiny if arguments.size == "tiny" else _full)(network)
        for variable in model.weights:
            variable.assign(_values(variable.name, variable.numpy(), rng))
        inputs = _inputs(network, model, rng)
        for index, values in enumerate(inputs):
            arrays[f"{network}/{index}"] = values
        arrays[f"{network}/output"] = np.asarray(
            model(inputs if len(inputs) > 1 else inputs[0], training=False)
        )
        model.save_weights(arguments.output / f"{network}.h5")
    np.savez_compressed(arguments.output / "reference.npz", **arrays)


def _values(name: str, initial: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(initial.shape)
    if name.endswith(("bias:0", "beta:0")):
        return 0.02 * noise
    return initial * (1 + 0.1 * noise)


def _inputs(network: str, model: Any, rng: np.random.Generator) -> list[np.ndarray]:
    if network == "text_encoder":
        tokens = rng.integers(0, 50, (2, 77)).astype(np.int32)
        return [tokens, np.broadcast_to(np.arange(77, dtype=np.int32), (2, 77)).copy()]
    shapes = [tuple(64 if side is None else side for side in i.shape[1:]) for i in model.inputs]
    return [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]


def _full(network: str) -> Any:
    builds: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: TextEncoder(77, download_weights=False),
        "image_encoder": lambda: ImageEncoder(download_weights=False),
        "diffusion_model": lambda: DiffusionModel(128, 128, 77, download_weights=False),
        "decoder": lambda: Decoder(128, 128, download_weights=False),
    }
    return builds[network]()


def _tiny(network: str) -> Any:
    builds: dict[str, Callable[[], Any]] = {
        "text_encoder": _tiny_text_encoder,
        "image_encoder": lambda: keras.Sequential(_tiny_image_encoder()),
        "diffusion_model": _tiny_diffusion_model,
        "decoder": lambda: keras.Sequential(_tiny_decoder()),
    }
    return builds[network]()


def _grouped(layer: Any) -> Any:
    for part in layer._flatten_layers():
        if isinstance(part, _layers.GroupNormalization):
            part.groups = _GROUPS
    return layer


def _tiny_text_encoder() -> Any:
    tokens = _layers.Input(shape=(77,), dtype="int32", name="tokens")
    positions = _layers.Input(shape=(77,), dtype="int32", name="positions")
    x = CLIPEmbedding(50, 8, 77)([tokens, positions])
    for _ in range(2):
        x = CLIPEncoderLayer(8, 2, activation=quick_gelu)(x)
    return keras.Model([tokens, positions], _layers.LayerNormalization(epsilon=1e-5)(x))


def _tiny_image_encoder() -> Sequence[Any]:
    return [
        _layers.Input((None, None, 3)),
        PaddedConv2D(4, 3, padding=1),
        _grouped(ResnetBlock(4)),
        PaddedConv2D(4, 3, padding=((0, 1), (0, 1)), strides=2),
        _grouped(ResnetBlock(4)),
        PaddedConv2D(4, 3, padding=((0, 1), (0, 1)), strides=2),
        _grouped(ResnetBlock(4)),
        PaddedConv2D(4, 3, padding=((0, 1), (0, 1)), strides=2),
        _grouped(ResnetBlock(8)),
        _grouped(ResnetBlock(8)),
        _grouped(AttentionBlock(8)),
        _grouped(ResnetBlock(8)),
        _layers.GroupNormalization(_GROUPS, epsilon=1e-5),
        _layers.Activation("swish"),
        PaddedConv2D(8, 3, padding=1),
        PaddedConv2D(8, 1),
        _layers.Lambda(lambda x: x[..., :4] * 0.18215),
    ]


def _tiny_decoder() -> Sequence[Any]:
    return [
        _layers.Input((8, 8, 4)),
        _layers.Rescaling(1.0 / 0.18215),
        PaddedConv2D(4, 1),
        PaddedConv2D(8, 3, padding=1),
        _grouped(ResnetBlock(8)),
        _grouped(AttentionBlock(8)),
        *(_grouped(ResnetBlock(8)) for _ in range(2)),
        _layers.UpSampling2D(2),
        PaddedConv2D(8, 3, padding=1),
        _grouped(ResnetBlock(4)),
        _layers.UpSampling2D(2),
        PaddedConv2D(4, 3, padding=1),
        _grouped(ResnetBlock(4)),
        _layers.UpSampling2D(2),
        PaddedConv2D(4, 3, padding=1),
        _grouped(ResnetBlock(4)),
        _layers.GroupNormalization(_GROUPS, epsilon=1e-5),
        _layers.Activation("swish"),
        PaddedConv2D(3, 3, padding=1),
    ]


def _tiny_diffusion_model() -> Any:
    context = _layers.Input((77, 8), name="context")
    timestep = _layers.Input((8,), name="timestep_embedding")
    latent = _layers.Input((8, 8, 4), name="latent")
    embedding = _layers.Dense(16)(timestep)
    embedding = _layers.Activation("swish")(embedding)
    embedding = _layers.Dense(16)(embedding)

    def residual(x: Any, width: int) -> Any:
        return _grouped(ResBlock(width))([x, embedding])

    def attend(x: Any, width: int) -> Any:
        return _grouped(SpatialTransformer(2, width // 2, fully_connected=False))([x, context])

    x = PaddedConv2D(4, 3, padding=1)(latent)
    outputs = [x]
    x = attend(residual(x, 4), 4)
    outputs.append(x)
    x = PaddedConv2D(4, 3, strides=2, padding=1)(x)
    outputs.append(x)
    x = residual(x, 8)
    outputs.append(x)

    x = residual(attend(residual(x, 8), 8), 8)

    for _ in range(2):
        x = residual(_layers.Concatenate()([x, outputs.pop()]), 8)
    x = Upsample(8)(x)
    for _ in range(2):
        x = attend(residual(_layers.Concatenate()([x, outputs.pop()]), 4), 4)

    x = _layers.GroupNormalization(_GROUPS, epsilon=1e-5)(x)
    x = _layers.Activation("swish")(x)
    return keras.Model([latent, timestep, context], PaddedConv2D(4, 3, padding=1)(x))


if __name__ == "__main__":
    main()
