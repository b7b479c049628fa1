"""Measures of the pictures that a model draws for held-out captions.

What is in `MEASURES` is computed by LossScorer, becomes metrics of the Evaluator, stands on the
page of EvaluationReport and in its summary, and so in lineage. Importing it imports no TensorFlow.
"""

from components.measures.clip_score import ClipScore
from components.measures.colour_agreement import ColourAgreement
from components.measures.creature_agreement import (
    EyesAgreement,
    FeatureAgreement,
    ShapeAgreement,
)
from components.measures.feature_distance import FeatureDistance
from components.measures.measure import Measure, MeasureSettings

__all__ = ["MEASURES", "Measure", "MeasureSettings", "applying"]

MEASURES: tuple[Measure, ...] = (
    ColourAgreement(),
    ShapeAgreement(),
    EyesAgreement(),
    FeatureAgreement(),
    FeatureDistance(),
    ClipScore(),
)


def applying(settings: MeasureSettings) -> tuple[Measure, ...]:
    """The measures that are taken, in the order of `MEASURES`.

    Raises:
        ValueError: What is asked for is no measure that is particular to some datasets.
    """
    particular = [measure.name for measure in MEASURES if measure.particular]
    for name in settings.asked_for:
        if name not in particular:
            raise ValueError(
                f"{name!r} is no measure that a dataset can ask for: there is "
                f"{', '.join(particular)}"
            )
    return tuple(measure for measure in MEASURES if measure.applies(settings))
