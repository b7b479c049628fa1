"""Examples -> Latents: what the two frozen encoders make of every picture and caption, once."""

from components.latent_gen.component import LatentGen

__all__ = ["LatentGen"]
