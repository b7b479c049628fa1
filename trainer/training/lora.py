"""Low-rank adapters on the attention projections (LoRA, Hu et al. 2022)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from storage.user_errors import UserError
from trainer.model_spec import LORA_NAME, save_file
from trainer.networks.seam import compute_as

_UNET_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "out_proj": "to_out_0"}
_TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def diffusion_model_projections(model: keras.Model) -> dict[str, keras.layers.Dense]:
    """The attention projections of the U-Net, by their names in kohya's LoRA files."""
    return {
        f"lora_unet_{_underscored(block)}_transformer_blocks_0_{attention}_{theirs}": getattr(
            getattr(block.transformer_block, attention), ours
        )
        for block in model.layers
        if hasattr(block, "transformer_block")
        for attention in ("attn1", "attn2")
        for ours, theirs in _UNET_PROJECTIONS.items()
    }


def text_encoder_projections(model: keras.Model) -> dict[str, keras.layers.Dense]:
    """The attention projections of the text encoder, by their names in kohya's LoRA files."""
    return {
        f"lora_te_{_underscored(block)}_self_attn_{name}": getattr(block.clip_attn, name)
        for block in model.layers
        if hasattr(block, "clip_attn")
        for name in _TEXT_PROJECTIONS
    }


def _underscored(layer: keras.layers.Layer) -> str:
    return str(layer.name).replace(".", "_")


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """Adds `scale * (x @ down) @ up` to the output of its layer."""

    layer: keras.layers.Dense
    down: tf.Variable
    up: tf.Variable
    scale: float

    def attach(self) -> None:
        adapter = self

        class AdaptedDense(keras.layers.Dense):
            def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
                # Not added to the kernel: its 16-bit rounding would lose a small change.
                low = tf.matmul(inputs, tf.cast(adapter.down, inputs.dtype))
                change = tf.matmul(low, tf.cast(adapter.up, inputs.dtype))
                return super().call(inputs, training=training) + adapter.scale * change

        compute_as(self.layer, AdaptedDense)

    def detach(self) -> None:
        compute_as(self.layer, keras.layers.Dense)

    def merge(self) -> None:
        change = tf.matmul(tf.convert_to_tensor(self.down), tf.convert_to_tensor(self.up))
        self.layer.kernel.assign(self.layer.kernel + self.scale * change)


class LowRankAdapters:
    """One adapter for each projection; the weights of the projections do not change.

    Attributes:
        variables: The trained variables, float32: for each projection, `down` [width in, rank] and
            `up` [rank, width out].
    """

    def __init__(
        self,
        projections: Mapping[str, keras.layers.Dense],
        *,
        rank: int,
        alpha: float,
        seed: int,
        initial: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Attaches the adapters; under `tf.distribute`, call it in the strategy's scope.

        New adapters change nothing at first: `up` is zero.

        Args:
            projections: The projections, by name.
            rank: Rank of every adapter.
            alpha: The change of an adapter is scaled by `alpha / rank`.
            seed: Decides the initial `down`.
            initial: For adapters that are not new, by name: `down` [width in, rank] and `up`
                [rank, width out].

        Raises:
            UserError: One of these has another shape, or belongs to a projection that does not
                exist.
        """
        given = initial or {}
        if unknown := sorted(set(given) - set(projections)):
            raise UserError(
                f"the adapters of the starting model belong to another network: {unknown[0]} is "
                "not a projection of this one; start from another model"
            )
        self._rank = rank
        self._alpha = alpha
        self._adapters: dict[str, _Adapter] = {}
        for index, (name, layer) in enumerate(projections.items()):
            width_in, width_out = layer.kernel.shape
            rng = np.random.default_rng([seed, index])
            # Initialized as in the paper's code: uniform, with variance 1 / (3 * width).
            limit = width_in**-0.5
            down = rng.uniform(-limit, limit, (width_in, rank)).astype(np.float32)
            up = np.zeros((rank, width_out), np.float32)
            if name in given:
                shapes = down.shape, up.shape
                down, up = (np.asarray(values, np.float32) for values in given[name])
                if (down.shape, up.shape) != shapes:
                    raise UserError(
                        f"the adapter {name} of the starting model has the shapes {down.shape} and "
                        f"{up.shape}, but must have {shapes[0]} and {shapes[1]}: start from "
                        "another model"
                    )
            self._adapters[name] = _Adapter(
                layer,
                tf.Variable(down, name=f"{name}_down"),
                tf.Variable(up, name=f"{name}_up"),
                alpha / rank,
            )
        for adapter in self._adapters.values():
            adapter.attach()

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return [v for adapter in self._adapters.values() for v in (adapter.down, adapter.up)]

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Within this, the networks hold the adapters in their own weights, as on export."""
        before = [tf.identity(adapter.layer.kernel) for adapter in self._adapters.values()]
        self.merge()
        try:
            yield
        finally:
            for adapter, kernel in zip(self._adapters.values(), before, strict=True):
                adapter.layer.kernel.assign(kernel)
                adapter.attach()

    def merge(self) -> None:
        """Adds the adapters to the networks' own weights and detaches them."""
        for adapter in self._adapters.values():
            adapter.detach()
            adapter.merge()

    def save(self, folder: str, header: Mapping[str, str]) -> None:
        """Writes `<folder>/lora.safetensors` with kohya's keys, which diffusers and others read.

        For each projection `lora_down.weight` [rank, width in], `lora_up.weight` [width out, rank]
        and `alpha` [], float32.

        Args:
            folder: Any folder that TensorFlow can open.
            header: The keys of the header, apart from ModelSpec's hash.
        """
        tensors = {}
        for name, adapter in self._adapters.items():
            tensors[f"{name}.lora_down.weight"] = _transposed(adapter.down)
            tensors[f"{name}.lora_up.weight"] = _transposed(adapter.up)
            tensors[f"{name}.alpha"] = np.asarray(self._alpha, np.float32)
        with tempfile.TemporaryDirectory() as scratch:
            local = os.path.join(scratch, LORA_NAME)
            save_file(tensors, local, header)
            tf.io.gfile.makedirs(folder)
            tf.io.gfile.copy(local, os.path.join(folder, LORA_NAME), overwrite=True)


def _transposed(variable: tf.Variable) -> np.ndarray:
    return np.ascontiguousarray(variable.numpy().T)
