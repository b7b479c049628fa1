"""Latents, candidate and baseline -> Scores: seeded held-out losses, a row a timestep stratum."""

from components.loss_scorer.component import LossScorer

__all__ = ["LossScorer"]
