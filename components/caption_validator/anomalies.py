"""Reads the anomalies that validation wrote, as rows to show."""

from __future__ import annotations

import dataclasses
import os

from tensorflow_data_validation.utils import anomalies_util
from tfx import types
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME
from tfx.types import artifact_utils

WHOLE_DATASET = "(all rows)"
"""Stands in place of a feature's name if an anomaly concerns the whole dataset."""


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """One way in which a split does not fit the schema.

    Attributes:
        split: Name of the split.
        feature: Name of the feature, or `WHOLE_DATASET`.
        summary: TFDV's short description.
        description: TFDV's long description.
    """

    split: str
    feature: str
    summary: str
    description: str


def read_anomalies(anomalies: types.Artifact) -> list[Anomaly]:
    """Reads all splits of an `ExampleAnomalies` artifact, sorted by feature within a split."""
    return [
        anomaly
        for split in artifact_utils.decode_split_names(anomalies.split_names)
        for anomaly in _read_split(anomalies, split)
    ]


def _read_split(anomalies: types.Artifact, split: str) -> list[Anomaly]:
    folder = artifact_utils.get_split_uri([anomalies], split)
    found = anomalies_util.load_anomalies_binary(os.path.join(folder, DEFAULT_FILE_NAME))
    rows = [
        Anomaly(
            split,
            # In the key of the map, TFDV quotes names with a slash.
            "/".join(info.path.step) or name,
            _one_line(info.short_description),
            _one_line(info.description),
        )
        for name, info in found.anomaly_info.items()
    ]
    rows.sort(key=lambda row: row.feature)
    if found.HasField("dataset_anomaly_info"):
        whole = found.dataset_anomaly_info
        texts = (_one_line(whole.short_description), _one_line(whole.description))
        rows.insert(0, Anomaly(split, WHOLE_DATASET, *texts))
    if found.data_missing:
        rows.insert(0, Anomaly(split, WHOLE_DATASET, "No rows", "The split has no rows."))
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split())
