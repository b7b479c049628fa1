"""Measures of the pictures that a model draws for held-out captions.

LossScorer computes every measure in `MEASURES`. The Evaluator turns it into metrics, and
EvaluationReport shows it on its page and in its summary, and so in lineage. Importing this package
does not import TensorFlow.
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
    """The measures to take, in the order of `MEASURES`.

    Raises:
        ValueError: A requested name is not a measure that is particular to some datasets.
    """
    particular = [measure.name for measure in MEASURES if measure.particular]
    for name in settings.asked_for:
        if name not in particular:
            raise ValueError(
                f"{name!r} is not a measure that a dataset can ask for; it can ask for "
                f"{', '.join(particular)}"
            )
    return tuple(measure for measure in MEASURES if measure.applies(settings))
