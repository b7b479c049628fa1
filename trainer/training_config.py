"""Hyperparameters of one training run."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.presets import Preset

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LearningRateSchedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bfloat16", "float16"]
Xla = Literal["auto", "on", "off"]
Devices = Literal["all", "one"]
MemoryCheck = Literal["refuse", "warn"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TrainingConfig:
    """Hyperparameters; `None` means "what the preset recommends".

    Attributes:
        steps: Optimizer steps.
        epochs: Instead of `steps`: times that every example is seen; 0 leaves it to `steps`.
        batch_size: Examples an optimizer step, over all devices.
        accumulation_steps: Parts in which a batch is computed, one after another.
        learning_rate: AdamW's, at the end of the warm-up.
        learning_rate_schedule: How it goes on from there: `constant`, or `linear` or `cosine` down
            to zero at the last step.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        weight_decay: AdamW's decoupled weight decay.
        max_gradient_norm: Global norm that gradients are clipped to.
        ema_decay: Upper limit of the decay of the exponential moving average of the weights.
        caption_dropout: Fraction of captions replaced by the empty one, for classifier-free
            guidance (Ho and Salimans 2022).
        min_snr_gamma: Signal-to-noise ratio above which timesteps count for less (Hang et al.
            2023); 0 weighs all alike.
        noise_offset: Deviation of the noise that is added to a whole channel; 0 is none.
        lora_rank: Rank of the attention projections' adapters, which alone are trained (Hu et al.
            2022); 0 trains all weights.
        lora_alpha: The adapters count `lora_alpha / lora_rank`; 0 makes it the rank.
        train_text_encoder: Whether the text encoder is trained along.
        precision: What the networks compute in; weights, loss, noise and average are float32.
        xla: Whether XLA compiles the step; `auto` where there is a GPU.
        gradient_checkpointing: Whether the backward pass computes a block's inner values again.
        devices: `all` GPUs, and all workers in `TF_CONFIG`; or `one`.
        memory_check: What happens to a run that will not fit into memory.
        checkpoint_every_steps: Steps between checkpoints.
        checkpoints_kept: Latest checkpoints that are kept.
        log_every_steps: Steps between logged values.
        seed: Decides data order, timesteps, noise and caption dropout.
    """

    steps: PositiveInt | None = None
    epochs: NonNegativeFloat = 0.0
    batch_size: PositiveInt | None = None
    accumulation_steps: PositiveInt = 1
    learning_rate: PositiveFloat | None = None
    learning_rate_schedule: LearningRateSchedule | None = None
    warmup_steps: NonNegativeInt | None = None
    weight_decay: NonNegativeFloat = 1e-2
    max_gradient_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    min_snr_gamma: NonNegativeFloat = 0.0
    noise_offset: NonNegativeFloat = 0.0
    lora_rank: NonNegativeInt = 0
    lora_alpha: NonNegativeFloat = 0.0
    train_text_encoder: bool = False
    precision: Precision = "float32"
    xla: Xla = "auto"
    gradient_checkpointing: bool = False
    devices: Devices = "all"
    memory_check: MemoryCheck = "refuse"
    checkpoint_every_steps: PositiveInt = 100
    checkpoints_kept: PositiveInt = 2
    log_every_steps: PositiveInt = 10
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def resolved(self, preset: Preset) -> ResolvedTrainingConfig:
        """This configuration with every `None` replaced by the preset's recommendation.

        A recommended warm-up longer than half of the steps is shortened to that half. With
        `epochs`, steps and a recommended warm-up stay open until `for_examples`.
        """
        values = {
            name: getattr(preset.training, name) if value is None else value
            for name, value in dataclasses.asdict(self).items()
        }
        if self.epochs:
            values["steps"], values["warmup_steps"] = self.steps, self.warmup_steps
        elif self.warmup_steps is None:
            values["warmup_steps"] = min(values["warmup_steps"], values["steps"] // 2)
        values["lora_alpha"] = self.lora_alpha or float(self.lora_rank)
        return ResolvedTrainingConfig(**values)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class ResolvedTrainingConfig:
    """`TrainingConfig` with no field left open; see there for what each means.

    With `epochs`, `steps` is `None`, and `warmup_steps` may be, until `for_examples`.
    """

    steps: PositiveInt | None
    epochs: NonNegativeFloat
    batch_size: PositiveInt
    accumulation_steps: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    warmup_steps: NonNegativeInt | None
    weight_decay: NonNegativeFloat
    max_gradient_norm: PositiveFloat
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    caption_dropout: Annotated[float, Field(ge=0, lt=1)]
    min_snr_gamma: NonNegativeFloat
    noise_offset: NonNegativeFloat
    lora_rank: NonNegativeInt
    lora_alpha: NonNegativeFloat
    train_text_encoder: bool
    precision: Precision
    xla: Xla
    gradient_checkpointing: bool
    devices: Devices
    memory_check: MemoryCheck
    checkpoint_every_steps: PositiveInt
    checkpoints_kept: PositiveInt
    log_every_steps: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**31)]

    def for_examples(self, num_examples: int, preset: Preset) -> ResolvedTrainingConfig:
        """This configuration with the steps that `epochs` of `num_examples` make.

        Args:
            num_examples: Examples of the train split.
            preset: Recommends a warm-up, shortened to half of the steps, where none is given.

        Raises:
            ValueError: The warm-up that was given is longer than that.
        """
        if self.steps is not None:
            return self
        steps = math.ceil(self.epochs * num_examples / self.batch_size)
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = min(preset.training.warmup_steps, steps // 2)
        if warmup_steps > steps:
            raise ValueError(
                f"training.warmup_steps = {warmup_steps} is impossible: {self.epochs:g} epochs of "
                f"{num_examples} pictures are {steps} steps; it must be at most as many"
            )
        return dataclasses.replace(self, steps=steps, warmup_steps=warmup_steps)
