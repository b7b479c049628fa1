"""Scores and pictures -> a page about the model."""

from components.evaluation_report.component import EvaluationReport

__all__ = ["EvaluationReport"]
