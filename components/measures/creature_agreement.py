"""Does a picture show the creature that its caption describes?

A small network reads the pictures, which was trained on other drawings of the sample dataset's kind
(`components.measures.creature_reader`).
"""

from __future__ import annotations

import abc

from components.measures.creature_reader.reader import Looks, described, shipped_reader
from components.measures.measure import Drawn, MeanMeasure, MeasureSettings, Measuring


class _CreatureAgreement(MeanMeasure):
    """Mean of what is right of each picture; captions of anything but creatures do not count."""

    format = "{:.0%}"
    possible = (0.0, 1.0)
    # The reader has seen nothing but such drawings.
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
        """How much of it is right, from 0 to 1; `None` where the caption asks for nothing."""


class ShapeAgreement(_CreatureAgreement):
    """Fraction of the pictures whose body has the shape that the caption names."""

    name = "shape_agreement"
    label = "Shapes right"

    def right(self, seen: Looks, asked: Looks) -> float:
        """See `_CreatureAgreement`."""
        return float(seen.shape == asked.shape)


class EyesAgreement(_CreatureAgreement):
    """Fraction of the pictures with as many eyes as the caption says, or two."""

    name = "eyes_agreement"
    label = "Eyes right"

    def right(self, seen: Looks, asked: Looks) -> float:
        """See `_CreatureAgreement`."""
        return float(seen.num_eyes == asked.num_eyes)


class FeatureAgreement(_CreatureAgreement):
    """Fraction of the features named by captions, such as horns, that are in their pictures."""

    name = "feature_agreement"
    label = "Features right"

    def right(self, seen: Looks, asked: Looks) -> float | None:
        """See `_CreatureAgreement`."""
        if not asked.features:
            return None
        return len(seen.features & asked.features) / len(asked.features)
