"""Pictures from the three SavedModels of a serving directory.

Needs TensorFlow and nothing of what the models were built or trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.errors import ServingError
from serving.releases import NETWORKS, find_release
from serving.request import check_request


class Generator:
    """Draws pictures with one release of a serving directory, in this process.

    Attributes:
        release: The release that was loaded.
    """

    def __init__(self, serving_dir: str, version: int | None = None) -> None:
        """Loads the three models.

        Args:
            serving_dir: A local path, or one that `tf.io.gfile` knows.
            version: The newest release if None.

        Raises:
            ServingError: The directory, the release or one of its models is missing or damaged.
        """
        self.release = find_release(serving_dir, version)
        folders = {network: self.release.model_folder(network) for network in NETWORKS}
        # The loaded objects own the variables that their signatures only borrow.
        self._models = {network: _load(folder) for network, folder in folders.items()}

    def generate(
        self,
        prompts: Sequence[str],
        negative_prompts: str | Sequence[str] | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
    ) -> np.ndarray:
        """Draws one picture per prompt.

        Each picture is drawn by itself, so that it depends on its own prompts, seed and numbers
        alone and not on its neighbours or its place among them.

        Args:
            prompts: What to draw.
            negative_prompts: What to keep away from, for all pictures or one per picture.
            num_steps: Sampling steps, 1 to 1000; the release's default if None.
            guidance_scale: How strictly to follow the prompt, 0 or more; 1 is no guidance. The
                release's default if None.
            seed: 0 to 2**64 - 1, for all pictures or one per picture.

        Returns:
            uint8 [B, H, W, 3].

        Raises:
            ServingError: A value is out of range, the numbers of prompts, negative prompts and
                seeds disagree, or a model fails.
        """
        if isinstance(prompts, str):
            raise ServingError("prompts is a single text; give a list of prompts")
        if not prompts:
            raise ServingError("there is no prompt; give at least one")
        negatives = _one_each(
            "" if negative_prompts is None else negative_prompts, len(prompts), "negative prompts"
        )
        seeds = _one_each(seed, len(prompts), "seeds")
        if num_steps is None:
            num_steps = self.release.num_steps
        if guidance_scale is None:
            guidance_scale = self.release.guidance_scale
        check_request(num_steps=num_steps, guidance_scale=guidance_scale, seeds=seeds)
        return np.stack(
            [
                self._draw(prompt, negative_prompt, num_steps, guidance_scale, seed)
                for prompt, negative_prompt, seed in zip(prompts, negatives, seeds, strict=True)
            ]
        )

    def _draw(
        self, prompt: str, negative_prompt: str, num_steps: int, guidance_scale: float, seed: int
    ) -> np.ndarray:
        contexts = self._call(
            "text_encoder",
            "text",
            prompt=tf.constant([_encode(prompt)]),
            negative_prompt=tf.constant([_encode(negative_prompt)]),
        )
        latent = self._call(
            "diffusion_model",
            "serving_default",
            context=contexts["context"],
            unconditional_context=contexts["unconditional_context"],
            num_steps=tf.constant(num_steps, tf.int32),
            guidance_scale=tf.constant(guidance_scale, tf.float32),
            seed=tf.constant(_seed_pair(seed)),
        )["latent"]
        images = self._call("decoder", "serving_default", latent=latent)["generated_images"]
        return images.numpy()[0]

    def _call(self, network: str, signature: str, **inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        model = self._models[network]
        if signature not in model.signatures:
            raise ServingError(
                f"the {network} of release {self.release.version} has no signature {signature}; "
                f"it has: {', '.join(sorted(model.signatures)) or 'none'}"
            )
        try:
            return model.signatures[signature](**inputs)
        except (TypeError, tf.errors.OpError) as error:
            raise ServingError(
                f"the {network} of release {self.release.version} failed: {_first_line(error)}"
            ) from error


def _load(folder: str) -> Any:
    try:
        return tf.saved_model.load(folder)
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise ServingError(
            f"the SavedModel in {folder} cannot be loaded: {_first_line(error)}"
        ) from error


def _one_each(values: Any, count: int, what: str) -> list[Any]:
    if isinstance(values, (str, int)):
        return [values] * count
    if len(values) != count:
        raise ServingError(
            f"there are {len(values)} {what} for {count} prompts; give one or {count}"
        )
    return list(values)


def _encode(prompt: str) -> bytes:
    # Bytes of a command line that are no UTF-8 arrive as surrogates; the tokenizer replaces them.
    return prompt.encode("utf-8", errors="surrogatepass")


def _seed_pair(seed: int) -> np.ndarray:
    """The seed as TensorFlow's stateless operations take it: int32 [2], the low half first."""
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
