"""The interface of a measure of drawn pictures.

A measure appears in the rows, as features of the scores, and as metrics of the Evaluator: under its
name for the candidate's pictures, and with `_baseline` appended for the baseline's pictures.
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
        means: float32 [B, h, w, 4], the image encoder's means for the pictures.
        tokens: int64 [B, 77], of the captions.
        captions: B captions decoded from the tokens: in lower case, and cut where the tokens are.
    """

    pictures: np.ndarray
    means: np.ndarray
    tokens: np.ndarray
    captions: Sequence[str]


Measuring = Callable[[Drawn], Sequence[Value | None]]
"""From pictures to one value each; `None` for a picture with nothing to measure."""


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What decides which measures are taken.

    Attributes:
        asked_for: Names of the measures that the dataset asks for.
        clip_model: Address of a CLIP; empty if there is none.
    """

    asked_for: tuple[str, ...] = ()
    clip_model: str = ""


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """A metric over many rows.

    Attributes:
        class_name: A class of `components.evaluator.metrics`.
        arguments: Arguments of its constructor.
    """

    class_name: str
    arguments: Mapping[str, str]


class Measure(abc.ABC):
    """A measure of the pictures that a model draws for held-out captions.

    Attributes:
        name: Name of the metric.
        label: Name shown to users.
        format: Format of the number shown to users.
        possible: Smallest and largest possible value.
        note: What users need to know to read it, in sentences; may be empty.
        better: Whether a `higher` or a `lower` number is better.
        particular: Whether it only makes sense for some datasets, which ask for it by name.
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
        """Name of the same metric for the baseline's pictures."""
        return f"{self.name}_baseline"

    def applies(self, settings: MeasureSettings) -> bool:
        """Whether this measure is taken."""
        return not self.particular or self.name in settings.asked_for

    @abc.abstractmethod
    def load(self, settings: MeasureSettings) -> Measuring:
        """Loads what the computation needs, once per process, and returns the computation."""

    @abc.abstractmethod
    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """The features that this measure adds to the rows of an example, by name.

        Args:
            candidate: Value for the candidate's picture.
            baseline: Value for the baseline's picture; also `None` if there is no baseline.
            held_out_mean: float32 [h, w, 4], the image encoder's mean for the held-out picture.
        """

    @abc.abstractmethod
    def metrics(self) -> tuple[MetricSpec, MetricSpec]:
        """The metrics over many rows for the candidate and the baseline."""


class MeanMeasure(Measure):
    """A measure with one number per picture, summarised by their mean with its 95 % interval."""

    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """See `Measure`: one feature for each model, with the name of its metric."""
        return {self.name: candidate, self.baseline_name: baseline}

    def metrics(self) -> tuple[MetricSpec, MetricSpec]:
        """See `Measure`."""
        return (
            MetricSpec("MeanWithInterval", {"feature": self.name}),
            MetricSpec("MeanWithInterval", {"feature": self.baseline_name}),
        )
