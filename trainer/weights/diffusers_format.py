"""The tensors of diffusers' Stable Diffusion v1.x: names, shapes, and how to read them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors

from storage.errors import one_line
from trainer.networks.seam import (
    AttentionBlock,
    CLIPEmbedding,
    CLIPEncoderLayer,
    ResBlock,
    ResnetBlock,
    SpatialTransformer,
    Upsample,
)
from trainer.weights.errors import WeightsError
from trainer.weights.original_names import current_names, original_names

_TEXT_ROOT = "text_model."
# Newer versions of transformers omit the root; older ones store a constant with the weights.
_NOT_WEIGHTS = frozenset({f"{_TEXT_ROOT}embeddings.position_ids"})
# The attention of the autoencoder had these names until diffusers 0.17, and still has on the hub.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

_NORM_AND_CONV = ("norm1", "conv1", "norm2", "conv2", "conv_shortcut")
_TRANSFORMER = "transformer_blocks.0"
# The parts of each layer, in the order of its weights.
_PARTS: Mapping[type, Sequence[str]] = {
    ResBlock: ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    ResnetBlock: _NORM_AND_CONV,
    AttentionBlock: ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    SpatialTransformer: (
        "norm",
        "proj_in",
        f"{_TRANSFORMER}.norm1",
        f"{_TRANSFORMER}.attn1.to_q",
        f"{_TRANSFORMER}.attn1.to_k",
        f"{_TRANSFORMER}.attn1.to_v",
        f"{_TRANSFORMER}.attn1.to_out.0",
        f"{_TRANSFORMER}.norm2",
        f"{_TRANSFORMER}.attn2.to_q",
        f"{_TRANSFORMER}.attn2.to_k",
        f"{_TRANSFORMER}.attn2.to_v",
        f"{_TRANSFORMER}.attn2.to_out.0",
        f"{_TRANSFORMER}.norm3",
        f"{_TRANSFORMER}.ff.net.0.proj",
        f"{_TRANSFORMER}.ff.net.2",
        "proj_out",
    ),
    Upsample: ("conv",),
    CLIPEmbedding: ("token_embedding", "position_embedding"),
    CLIPEncoderLayer: (
        "layer_norm1",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ),
}
_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "embeddings": "weight",
    "bias": "bias",
    "beta": "bias",
}


def tensor_names(model: keras.Model) -> list[str]:
    """The name in this layout of every weight of a model, in the order of `model.weights`.

    Args:
        model: Built by `trainer.networks`, whose layers have the names of diffusers' modules.
    """
    names = {}
    for layer in model.layers:
        parts = iter(_parts(layer))
        part = ""
        for variable in layer.weights:
            kind = _KINDS[variable.name]
            # The first weight of every part is its kernel, scale or embedding.
            if kind == "weight":
                part = next(parts)
            names[id(variable)] = ".".join(filter(None, (layer.name, part, kind)))
    return [names[id(variable)] for variable in model.weights]


def to_diffusers(model: keras.Model, values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a model in PyTorch's form.

    Args:
        model: Built by `trainer.networks`.
        values: One for each of `model.weights`, in their order; the model's own are not read.

    Returns:
        Tensors by name: kernels [out, in, h, w] or [out, in], everything else unchanged.
    """
    linear = _linear(model)
    return {
        name: np.ascontiguousarray(_to_torch(value, variable.name, name in linear))
        for name, variable, value in zip(tensor_names(model), model.weights, values, strict=True)
    }


def to_original(
    model: keras.Model, network: str, values: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """The weights of a model in the original layout.

    Args:
        model: Built by `trainer.networks`.
        network: Which of `trainer.presets.NETWORKS` it is.
        values: One for each of `model.weights`, in their order; the model's own are not read.

    Returns:
        Tensors by name, as `to_diffusers` returns them, except for the attention of the
        autoencoder, whose matrices are 1 x 1 convolutions there: [out, in, 1, 1].
    """
    tensors, linear = to_diffusers(model, values), _linear(model)
    keys = original_names(network, list(tensors))
    return {
        key: value[:, :, None, None] if name in linear and value.ndim == 2 else value
        for key, (name, value) in zip(keys, tensors.items(), strict=True)
    }


def load_tensors(
    model: keras.Model,
    network: str,
    paths: Sequence[Path],
    shown: Sequence[str],
    *,
    original: bool = False,
) -> None:
    """Sets the weights of a model from safetensors files.

    Args:
        model: Built by `trainer.networks`.
        network: Which of `trainer.presets.NETWORKS` it is.
        paths: The files that `network_files` returned, on this machine.
        shown: Their names in messages.
        original: Whether they have the names of the original layout.

    Raises:
        WeightsError: They are damaged, or do not hold exactly the tensors of this network.
    """
    with contextlib.ExitStack() as stack:
        stored: dict[str, tuple[Any, str]] = {}
        for path, file in zip(paths, shown, strict=True):
            try:
                opened = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{file} is damaged: {one_line(error)}; fetch it again"
                ) from None
            for key in opened.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                stored[key] = opened, file
        names = tensor_names(model)
        if original:
            current = current_names(network, names, stored)
        else:
            current = _current_names(network, stored)
        where = {name: key for key, name in current.items()}
        missing = [name for name in names if name not in where]
        unknown = [key for name, key in where.items() if name not in set(names)]
        for problem, keys in (("lacks", missing), ("has unknown tensors:", unknown)):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise WeightsError(
                    f"{', '.join(shown)} is for another model than this {network}: it {problem} "
                    f"{keys[0]}{more}"
                )
        for name, variable in zip(names, model.weights, strict=True):
            key = where[name]
            opened, file = stored[key]
            tensor = opened.get_tensor(key)
            value = _from_torch(tensor, variable.name, len(variable.shape))
            if value.shape != tuple(variable.shape):
                raise WeightsError(
                    f"{file} is for another model than this {network}: {key} has the shape "
                    f"{list(tensor.shape)}, which does not fit {list(variable.shape)}"
                )
            variable.assign(value.astype(np.float32))


def _parts(layer: keras.layers.Layer) -> Sequence[str]:
    return next((parts for kind, parts in _PARTS.items() if isinstance(layer, kind)), ("",))


def _linear(model: keras.Model) -> set[str]:
    """Names of the 1 x 1 convolutions that are matrices in PyTorch."""
    blocks = tuple(f"{layer.name}." for layer in model.layers if isinstance(layer, AttentionBlock))
    return {name for name in tensor_names(model) if blocks and name.startswith(blocks)}


def _to_torch(value: np.ndarray, kind: str, linear: bool) -> np.ndarray:
    if kind != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    value = value.transpose(3, 2, 0, 1)
    return value[:, :, 0, 0] if linear else value


def _from_torch(tensor: np.ndarray, kind: str, rank: int) -> np.ndarray:
    if kind != "kernel":
        return tensor
    if tensor.ndim == 2:
        return tensor.T if rank == 2 else tensor.T[None, None]
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _current_names(network: str, keys: Collection[str]) -> dict[str, str]:
    """The current names of the tensors of a network, whatever version wrote them, by key."""
    of_the_other_half = _prefixes(network)
    current = {key: _current_name(key, network) for key in keys}
    return {
        key: name
        for key, name in current.items()
        if name not in _NOT_WEIGHTS and not name.startswith(of_the_other_half)
    }


def _current_name(key: str, network: str) -> str:
    """The current name of a tensor, whatever version wrote it."""
    if network == "text_encoder":
        return key if key.startswith(_TEXT_ROOT) else f"{_TEXT_ROOT}{key}"
    for now, then in _OLD_ATTENTION.items():
        if f".attentions.0.{then}." in key:
            return key.replace(f".{then}.", f".{now}.")
    return key


def _prefixes(network: str) -> tuple[str, ...]:
    """Prefixes of the tensors in the same file that belong to another network."""
    if network == "image_encoder":
        return ("decoder.", "post_quant_conv.")
    if network == "decoder":
        return ("encoder.", "quant_conv.")
    return ()
