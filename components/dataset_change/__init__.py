"""Whether a dataset has changed since the last completed run, for scheduled runs."""

from components.dataset_change.component import DatasetChange, DatasetDone

__all__ = ["DatasetChange", "DatasetDone"]
