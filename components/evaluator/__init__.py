"""Scores -> metrics and a blessing: TFX's Evaluator with intervals and reasons."""

from components.evaluator.component import Evaluator

__all__ = ["Evaluator"]
