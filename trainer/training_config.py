"""Hyperparameters of one training run."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.presets import Preset

PositiveInt = Annotated[int, Field(ge=1)]
LearningRateSchedule = Literal["constant", "linear", "cosine"]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TrainingConfig:
    """Hyperparameters; `None` means "what the preset recommends".

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a step.
        learning_rate: AdamW's, at the end of the warm-up.
        learning_rate_schedule: How it goes on from there: `constant`, or `linear` or `cosine` down
            to zero at the last step.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        weight_decay: AdamW's decoupled weight decay.
        max_gradient_norm: Global norm that gradients are clipped to.
        ema_decay: Upper limit of the decay of the exponential moving average of the weights.
        caption_dropout: Fraction of captions replaced by the empty one, for classifier-free
            guidance (Ho and Salimans 2022).
        checkpoint_every_steps: Steps between checkpoints.
        log_every_steps: Steps between logged values.
        seed: Decides data order, timesteps, noise and caption dropout.
    """

    steps: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    learning_rate_schedule: LearningRateSchedule | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    max_gradient_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    checkpoint_every_steps: PositiveInt = 100
    log_every_steps: PositiveInt = 10
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def resolved(self, preset: Preset) -> ResolvedTrainingConfig:
        """This configuration with every `None` replaced by the preset's recommendation.

        A recommended warm-up longer than half of the steps is shortened to that half.
        """
        values = {
            name: getattr(preset.training, name) if value is None else value
            for name, value in dataclasses.asdict(self).items()
        }
        if self.warmup_steps is None:
            values["warmup_steps"] = min(values["warmup_steps"], values["steps"] // 2)
        return ResolvedTrainingConfig(**values)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class ResolvedTrainingConfig:
    """`TrainingConfig` with no field left open; see there for what each means."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_gradient_norm: PositiveFloat
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    caption_dropout: Annotated[float, Field(ge=0, lt=1)]
    checkpoint_every_steps: PositiveInt
    log_every_steps: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**31)]
