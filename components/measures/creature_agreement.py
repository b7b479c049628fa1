"""Does a picture show the creature that its caption describes?

The pictures are read by a small network that was trained on other drawings like the ones in the
sample dataset (`components.measures.creature_reader`).
"""

from __future__ import annotations

import abc

from components.measures.creature_reader.reader import Looks, described, shipped_reader
from components.measures.measure import Drawn, MeanMeasure, MeasureSettings, Measuring


class _CreatureAgreement(MeanMeasure):
    """Mean score of the pictures; captions that do not describe a creature do not count."""

    format = "{:.0%}"
    possible = (0.0, 1.0)
    # The reader has only seen such drawings.
    particular = True

    def load(self, settings: MeasureSettings) -> Measuring:
        """See `Measure`."""
        reader = shipped_reader()

        def agreement(drawn: Drawn) -> list[float | None]:
            pairs = zip(reader(drawn.pictures), map(described, drawn.captions), strict=True)
            return [None if asked is None else self.right(seen, asked) for seen, asked in pairs]

        return agreement

    @abc.abstractmethod
    def right(self, seen: Looks, asked: Looks) -> float | None:
        """How much of the picture is right, from 0 to 1; `None` if the caption asks for nothing."""


class ShapeAgreement(_CreatureAgreement):
    """Fraction of pictures whose body has the shape that the caption names."""

    name = "shape_agreement"
    label = "Shapes right"

    def right(self, seen: Looks, asked: Looks) -> float:
        """See `_CreatureAgreement`."""
        return float(seen.shape == asked.shape)


class EyesAgreement(_CreatureAgreement):
    """Fraction of pictures with the number of eyes that the caption names, two by default."""

    name = "eyes_agreement"
    label = "Eyes right"

    def right(self, seen: Looks, asked: Looks) -> float:
        """See `_CreatureAgreement`."""
        return float(seen.num_eyes == asked.num_eyes)


class FeatureAgreement(_CreatureAgreement):
    """Fraction of the features named by captions, such as horns, that their pictures show."""

    name = "feature_agreement"
    label = "Features right"

    def right(self, seen: Looks, asked: Looks) -> float | None:
        """See `_CreatureAgreement`."""
        if not asked.features:
            return None
        return len(seen.features & asked.features) / len(asked.features)
