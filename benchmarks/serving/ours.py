"""Our three SavedModels, loaded and called like the client of a folder."""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.serving.measured import (
    GUIDANCE_SCALE,
    NUM_STEPS,
    PROMPT,
    VERSION,
    Draw,
    arguments,
    measure,
)
from serving.in_process import LoadedModels
from serving.releases import Release


def main() -> None:
    """The command line: that of the other ways, the folder of the models and the sampler."""
    sampler = sys.argv.pop()
    folder = sys.argv.pop()
    given = arguments()

    def load() -> Draw:
        models = LoadedModels(
            Release(str(given.folder / folder), VERSION, {}, NUM_STEPS, GUIDANCE_SCALE)
        )

        def draw(count: int) -> np.ndarray:
            contexts = models.call(
                "text_encoder",
                "text",
                {
                    "prompt": np.array([PROMPT.encode()] * count, object),
                    "negative_prompt": np.array([b""] * count, object),
                },
                ("context", "unconditional_context"),
                VERSION,
            )
            request = {
                "num_steps": np.array(NUM_STEPS, np.int32),
                "guidance_scale": np.array(GUIDANCE_SCALE, np.float32),
                "seed": np.zeros(2, np.int32),
                "sampler": np.array(sampler.encode(), object),
            }
            latents = models.call(
                "diffusion_model", "sample", {**contexts, **request}, ("latent",), VERSION
            )
            return models.decode(latents["latent"], VERSION)

        return draw

    measure(load, given.image_size, given.pictures)


if __name__ == "__main__":
    main()
