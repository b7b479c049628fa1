"""Whether a dataset has changed since the last run that came to its end, for runs by a schedule."""

from components.dataset_change.component import DatasetChange, DatasetDone

__all__ = ["DatasetChange", "DatasetDone"]
