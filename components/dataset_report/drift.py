"""The drift from a former dataset, as the page shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tfx import types

from components.caption_validator.drift import COMPARED_SPLIT, OUTCOME, Drift, Measurement
from components.dataset_report.statistics import (
    CAPTION_LENGTH,
    PICTURE_MEASURES,
    Change,
    Panel,
    Statistics,
    largest_changes,
)

_MEASURES = {measure.feature: measure for measure in (CAPTION_LENGTH, *PICTURE_MEASURES)}
_TITLES = {"caption/words": "Words", "image/format": "Formats", OUTCOME: "Rows set aside"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A feature compared with the former dataset.

    Attributes:
        title: Title of the feature.
        measurement: How far it has drifted.
        panels: Histograms before and now, if it is a number that drifted.
        changes: Values whose shares changed most, if it is a text that drifted.
    """

    title: str
    measurement: Measurement
    panels: list[Panel]
    changes: list[Change]


def comparisons(drift: Drift, now: Statistics, before: types.Artifact) -> Iterator[Comparison]:
    """The compared features; those that drifted come first.

    Args:
        drift: Drift found by CaptionValidator.
        now: The statistics of the dataset.
        before: `ExampleStatistics` of the former dataset.
    """
    if not drift.measurements:
        # The statistics of the former dataset may be damaged.
        return
    former = Statistics(before)
    for measurement in sorted(drift.measurements, key=lambda m: not m.drifted):
        name = measurement.feature
        measure = _MEASURES.get(name)
        title = measure.title if measure else _TITLES.get(name, name)
        panels: list[Panel] = []
        changes: list[Change] = []
        if measurement.drifted and name == OUTCOME and drift.outcomes is not None:
            changes = largest_changes(drift.outcomes[1], drift.outcomes[0])
        elif measurement.drifted and measure is not None:
            panels = now.panels_beside(former, measure, COMPARED_SPLIT)
        elif measurement.drifted:
            changes = now.shares_beside(former, name, COMPARED_SPLIT)
        yield Comparison(title, measurement, panels, changes)
