"""Latents, candidate and baseline -> Scores: seeded held-out losses, one row per stratum."""

from components.loss_scorer.component import LossScorer

__all__ = ["LossScorer"]
