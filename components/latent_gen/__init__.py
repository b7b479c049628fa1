"""Examples -> Latents: the two frozen encoders encode every picture and caption once."""

from components.latent_gen.component import LatentGen

__all__ = ["LatentGen"]
