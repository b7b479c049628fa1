"""Artifact types of this project.

Vertex only accepts types without PROPERTIES, so facts go into custom properties. It also requires
TYPE_NAME to be the import path of the class: `components.<Class>`.
"""

from __future__ import annotations

from tfx.types import artifact


class RejectedRows(artifact.Artifact):
    """Rows of a dataset that were set aside, as JSON lines in `rejects.jsonl`.

    Custom properties: `rejected_total`, and `rejected_<reason>` for every reason that occurred.
    """

    TYPE_NAME = "components.RejectedRows"


class EvaluationReport(artifact.Artifact):
    """Pictures before and after fine-tuning, the loss curve and a summary of one evaluation."""

    TYPE_NAME = "components.EvaluationReport"


class WithdrawnReport(artifact.Artifact):
    """What was withdrawn from a dataset, and which releases and whether the new model know it."""

    TYPE_NAME = "components.WithdrawnReport"


class DatasetReport(artifact.Artifact):
    """A page, `dataset.html`, that shows a dataset's statistics, sample pictures and rejects."""

    TYPE_NAME = "components.DatasetReport"
