"""KerasCV's own generator, with our networks in place of its downloads."""

from __future__ import annotations

import functools

import numpy as np
from keras_cv.src.models.stable_diffusion.clip_tokenizer import SimpleTokenizer
from keras_cv.src.models.stable_diffusion.stable_diffusion import StableDiffusion

from benchmarks.serving.measured import (
    GUIDANCE_SCALE,
    NUM_STEPS,
    PROMPT,
    Draw,
    arguments,
    measure,
)
from trainer.networks import build_decoder, build_diffusion_model, build_text_encoder
from trainer.presets import get_preset


def main() -> None:
    """The command line."""
    given = arguments()
    preset, size = get_preset(given.preset), given.image_size

    def load() -> Draw:
        model = StableDiffusion(128, 128, jit_compile=False)
        # It would round a smaller size to nothing.
        model.img_height = model.img_width = size
        networks = {
            "text_encoder": build_text_encoder(preset),
            "diffusion_model": build_diffusion_model(preset, size),
            "decoder": build_decoder(preset, size),
        }
        for name, network in networks.items():
            network.load_weights(str(given.folder / f"{name}.weights.h5"))
            setattr(model, f"_{name}", network)
        model._tokenizer = SimpleTokenizer(str(given.folder / "merges.txt.gz"))
        model._get_timestep_embedding = functools.partial(
            model._get_timestep_embedding, dim=preset.diffusion_model.timestep_width
        )

        def draw(count: int) -> np.ndarray:
            return model.text_to_image(
                PROMPT,
                batch_size=count,
                num_steps=NUM_STEPS,
                unconditional_guidance_scale=GUIDANCE_SCALE,
                seed=0,
            )

        return draw

    measure(load, size, given.pictures)


if __name__ == "__main__":
    main()
