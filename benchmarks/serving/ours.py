"""Our three SavedModels, called as a client of the folder calls them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmarks.serving.measured import (
    GUIDANCE_SCALE,
    NUM_STEPS,
    PROMPT,
    Draw,
    arguments,
    measure,
)


def main() -> None:
    """The command line."""
    given = arguments()

    def load() -> Draw:
        models = {
            name: tf.saved_model.load(str(given.folder / "ours" / name))
            for name in ("text_encoder", "diffusion_model", "decoder")
        }

        def draw(count: int) -> np.ndarray:
            contexts = models["text_encoder"].signatures["text"](
                prompt=tf.constant([PROMPT] * count), negative_prompt=tf.constant([""] * count)
            )
            latent = models["diffusion_model"].signatures["serving_default"](
                **contexts,
                num_steps=tf.constant(NUM_STEPS),
                guidance_scale=tf.constant(GUIDANCE_SCALE),
                seed=tf.constant([0, 0]),
            )
            decoded = models["decoder"].signatures["serving_default"](**latent)
            return decoded["generated_images"].numpy()

        return draw

    measure(load, given.image_size, given.pictures)


if __name__ == "__main__":
    main()
