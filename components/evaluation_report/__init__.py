"""Scores and pictures -> a report to look at."""

from components.evaluation_report.component import EvaluationReport

__all__ = ["EvaluationReport"]
