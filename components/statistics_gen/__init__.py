"""TFX's StatisticsGen, whose Beam workers send whole elements."""

from components.statistics_gen.component import StatisticsGen

__all__ = ["StatisticsGen"]
