"""Examples, their statistics and the rejects -> a page to look at."""

from components.dataset_report.component import DatasetReport

__all__ = ["DatasetReport"]
