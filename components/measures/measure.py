"""What a measure of drawn pictures is.

A measure stands in rows, as features of the scores, and in a metric of the Evaluator, under a name
for the candidate's pictures and one with `_baseline` behind it for those of the baseline.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

Value = float | np.ndarray
"""A number, or a float32 vector."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Pictures that one model drew for held-out captions.

    Attributes:
        pictures: uint8 [B, H, W, 3].
        means: float32 [B, h, w, 4], the image encoder's of the pictures.
        tokens: int64 [B, 77], of the captions.
        captions: B, as they are told from the tokens: in lower case, and cut where those are.
    """

    pictures: np.ndarray
    means: np.ndarray
    tokens: np.ndarray
    captions: Sequence[str]


Measuring = Callable[[Drawn], Sequence[Value | None]]
"""From pictures to a value for each; `None` for one that there is nothing to measure of."""


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What decides which measures are taken.

    Attributes:
        asked_for: Names of measures that the dataset asks for.
        clip_model: Address of a CLIP; empty for none.
    """

    asked_for: tuple[str, ...] = ()
    clip_model: str = ""


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """A metric over many rows.

    Attributes:
        class_name: One of `components.evaluator.metrics`.
        arguments: What it is made with.
    """

    class_name: str
    arguments: Mapping[str, str]


class Measure(abc.ABC):
    """A measure of the pictures that a model draws for held-out captions.

    Attributes:
        name: Of the metric.
        label: What people call it.
        format: How its number is written for them.
        possible: The least and the most that it can be.
        note: What they have to know to read it, sentences; may be empty.
        better: Whether a `higher` or a `lower` number is better.
        particular: Whether it makes sense for some datasets alone, which ask for it by name.
    """

    name: str
    label: str
    format: str
    possible: tuple[float, float] = (-math.inf, math.inf)
    note: str = ""
    better: Literal["higher", "lower"] = "higher"
    particular: bool = False

    @property
    def baseline_name(self) -> str:
        """Of the same metric of the baseline's pictures."""
        return f"{self.name}_baseline"

    def applies(self, settings: MeasureSettings) -> bool:
        """Whether it is taken."""
        return not self.particular or self.name in settings.asked_for

    @abc.abstractmethod
    def load(self, settings: MeasureSettings) -> Measuring:
        """Loads what the computation needs, once a process, and returns the computation."""

    @abc.abstractmethod
    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """What the rows of an example have of it, by the names of features.

        Args:
            candidate: Of the candidate's picture.
            baseline: Of the baseline's; `None` also where there is none.
            held_out_mean: float32 [h, w, 4], the image encoder's of the held-out picture.
        """

    @abc.abstractmethod
    def metrics(self) -> tuple[MetricSpec, MetricSpec]:
        """Over many rows, the candidate's and the baseline's."""


class MeanMeasure(Measure):
    """A number a picture; what counts is their mean, which has a 95 % interval."""

    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """See `Measure`: one for each model, which are called as the metrics."""
        return {self.name: candidate, self.baseline_name: baseline}

    def metrics(self) -> tuple[MetricSpec, MetricSpec]:
        """See `Measure`."""
        return (
            MetricSpec("MeanWithInterval", {"feature": self.name}),
            MetricSpec("MeanWithInterval", {"feature": self.baseline_name}),
        )
