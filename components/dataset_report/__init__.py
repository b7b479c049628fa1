"""Examples, their statistics and the rejected rows -> a page."""

from components.dataset_report.component import DatasetReport

__all__ = ["DatasetReport"]
