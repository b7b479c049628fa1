"""What a training run depends on: its hyperparameters and everything else passed to `run_fn`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from storage.user_errors import UserError
from trainer.presets import Prediction, Preset, Sampler, get_preset
from trainer.text.new_word import NewWord

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
# Not strict: YAML and JSON have lists.
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Prompts = Annotated[Texts, Field(min_length=1, max_length=64)]
LearningRateSchedule = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adamw", "adafactor", "lion"]
Precision = Literal["float32", "bfloat16", "float16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16", "float16"]
Xla = Literal["auto", "on", "off"]
Devices = Literal["all", "one"]
Keep = Literal["last", "best"]
MemoryCheck = Literal["refuse", "warn"]
WeightsDtype = Literal["float32", "bfloat16", "float16"]
"""The type that weights are stored in."""

ComputeDtype = Literal["float32", "bfloat16", "float16"]
"""The type that exported networks compute in."""

Compute = Literal["auto", ComputeDtype]
"""The setting; `auto` is the type that proves fastest."""

STEPS_BY_EPOCHS = 0
"""Value of the run parameter `steps` if `epochs` sets the length."""

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        "epochs",  # `steps` has the result
        "reduce_batch_size",  # `batch_size` has the result
        "memory_check",
        "checkpoint_every_steps",
        "checkpoints_kept",
        "log_every_steps",
    }
)
"""Fields of a resolved `TrainingConfig` that do not affect the trained weights."""

TUNED = "tuned"
"""Key next to the run parameters that holds the hyperparameters found by the Tuner, if any."""

CLASS_LATENTS = "class_latents"
"""Key next to them that holds the folder with the latents of class pictures, if there are any."""

_OF_CHOICE = ("keep", "stop_early", "evaluate_every_steps", "choose_from_pictures")

# At their defaults these are left out, so that a run is the same as before they existed.
_LATER = (*_OF_CHOICE, "optimizer")

# Factor around the configured learning rate that is searched if no range is given.
_REACH = 10.0

_STRICT = ConfigDict(extra="forbid", strict=True)


class RunParameters(TypedDict):
    """What can be changed when a compiled pipeline is started: separate properties of the step."""

    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """Hyperparameters; `None` means "what the preset recommends".

    Attributes:
        steps: Optimizer steps.
        epochs: Instead of `steps`: how often every example is seen; 0 leaves it to `steps`.
        batch_size: Examples per optimizer step, over all devices.
        reduce_batch_size: Whether a batch larger than the train split is reduced to its size
            instead of being an error; `auto`: if `batch_size` is the preset's.
        accumulation_steps: Parts in which a batch is computed, one after another.
        optimizer: The optimizer.
        learning_rate: Learning rate at the end of the warm-up.
        learning_rate_schedule: The learning rate after the warm-up: `constant`, or `linear` or
            `cosine` decay to zero at the last step.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        weight_decay: Decoupled weight decay.
        max_gradient_norm: Global norm to which gradients are clipped.
        ema_decay: Upper limit of the decay of the exponential moving average of the weights.
        caption_dropout: Fraction of captions replaced by the empty caption, for classifier-free
            guidance (Ho and Salimans 2022).
        min_snr_gamma: Signal-to-noise ratio above which timesteps count for less (Hang et al.
            2023); 0 weights all alike.
        noise_offset: Standard deviation of the noise added to a whole channel; 0 adds none.
        lora_rank: Rank of the adapters of the attention projections, which are then all that is
            trained (Hu et al. 2022); 0 trains all weights.
        lora_alpha: The adapters are scaled by `lora_alpha / lora_rank`; 0 makes it the rank.
        train_text_encoder: Whether the text encoder is trained too.
        precision: Type that the networks compute in; weights, loss, noise and average are float32.
            `auto` is whatever the training machine computes fastest: bfloat16 or float32.
        xla: Whether XLA compiles the step; `auto`: if there is a GPU.
        gradient_checkpointing: Whether the backward pass recomputes the inner values of blocks.
        devices: `all` GPUs, and all workers in `TF_CONFIG`; or `one`.
        memory_check: What happens to a run that does not fit into memory.
        checkpoint_every_steps: Steps between checkpoints.
        checkpoints_kept: How many of the latest checkpoints are kept.
        log_every_steps: Steps between logged values.
        evaluate_every_steps: Steps between held-out losses; 0 for none, `None` for twenty per run.
        keep: Which weights are exported: from the `last` step or from the `best` one.
        stop_early: Evaluations without a lower held-out loss after which training stops; 0: never.
        choose_from_pictures: Least number of held-out pictures needed to choose by them.
        seed: Decides data order, timesteps, noise and caption dropout.
    """

    steps: PositiveInt | None = None
    epochs: NonNegativeFloat = 0.0
    batch_size: PositiveInt | None = None
    reduce_batch_size: Literal["auto", "always", "never"] = "auto"
    accumulation_steps: PositiveInt = 1
    optimizer: OptimizerName = "adamw"
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
    train_text_encoder: bool | None = None
    precision: PrecisionSetting | None = None
    xla: Xla = "auto"
    gradient_checkpointing: bool = False
    devices: Devices = "all"
    memory_check: MemoryCheck = "refuse"
    checkpoint_every_steps: PositiveInt = 100
    checkpoints_kept: PositiveInt = 2
    log_every_steps: PositiveInt = 10
    evaluate_every_steps: NonNegativeInt | None = None
    keep: Keep = "last"
    stop_early: NonNegativeInt = 0
    choose_from_pictures: Annotated[int, Field(ge=2)] = 16
    seed: Seed = 0

    def resolved(self, preset: Preset) -> ResolvedTrainingConfig:
        """This configuration with every `None` replaced by the preset's recommendation.

        A recommended warm-up longer than half of the steps is shortened to that half. With
        `epochs`, steps and a recommended warm-up stay open until `for_examples`.
        """
        values: dict[str, Any] = {
            # Settings that no preset recommends may stay open.
            name: getattr(preset.training, name, None) if value is None else value
            for name, value in dataclasses.asdict(self).items()
        }
        if self.epochs:
            values["steps"], values["warmup_steps"] = self.steps, self.warmup_steps
        elif self.warmup_steps is None:
            values["warmup_steps"] = min(values["warmup_steps"], values["steps"] // 2)
        values["lora_alpha"] = self.lora_alpha or float(self.lora_rank)
        if self.reduce_batch_size == "auto":
            values["reduce_batch_size"] = "always" if self.batch_size is None else "never"
        return ResolvedTrainingConfig(**values)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ResolvedTrainingConfig(TrainingConfig):
    """`TrainingConfig` with no field left open.

    With `epochs`, `steps` is `None`, and `warmup_steps` may be, until `for_examples`.
    """

    # Without `field()` they would keep `None` as their default.
    batch_size: PositiveInt = dataclasses.field()
    reduce_batch_size: Literal["always", "never"] = dataclasses.field()
    learning_rate: PositiveFloat = dataclasses.field()
    learning_rate_schedule: LearningRateSchedule = dataclasses.field()
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = dataclasses.field()
    train_text_encoder: bool = dataclasses.field()
    precision: PrecisionSetting = dataclasses.field()

    @property
    def chooses(self) -> bool:
        """Whether held-out pictures decide what is exported."""
        return self.keep == "best" or self.stop_early > 0

    @property
    def deciding(self) -> dict[str, Any]:
        """The fields that decide the weights; if nothing is chosen, those of earlier versions."""
        without = {*WITHOUT_EFFECT_ON_WEIGHTS, *(() if self.chooses else _OF_CHOICE)}
        if self.optimizer == TrainingConfig.optimizer:
            without.add("optimizer")
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in without
        }

    @property
    def run_parameters(self) -> RunParameters:
        """The values that can be changed when a compiled pipeline is started."""
        steps = STEPS_BY_EPOCHS if self.steps is None else self.steps
        return {"steps": steps, "learning_rate": self.learning_rate, "seed": self.seed}

    def for_examples(
        self, num_examples: int, preset: Preset, devices: int = 1
    ) -> ResolvedTrainingConfig:
        """This configuration with a batch that fits the examples, and with the steps of `epochs`.

        Args:
            num_examples: Examples of the train split.
            preset: Recommends a warm-up if none is given; it is shortened to half of the steps.
            devices: How many share a batch. A reduced batch is a multiple of this number times
                `accumulation_steps`, which is lowered if there are fewer pictures.

        Raises:
            UserError: The reduced batch cannot be split over the devices, or the given warm-up is
                longer than the training.
        """
        fitting = self._with_batch_for(num_examples, devices)
        if self.steps is not None:
            return fitting
        steps = math.ceil(self.epochs * num_examples / fitting.batch_size)
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = min(preset.training.warmup_steps, steps // 2)
        if warmup_steps > steps:
            raise UserError(
                f"training.warmup_steps = {warmup_steps} is impossible: {self.epochs:g} epochs of "
                f"{num_examples} pictures are {steps} steps, and the warm-up cannot be longer"
            )
        return dataclasses.replace(fitting, steps=steps, warmup_steps=warmup_steps)

    def _with_batch_for(self, num_examples: int, devices: int) -> ResolvedTrainingConfig:
        """With a batch that fits the examples, in fewer parts if there are too few."""
        if self.batch_size <= num_examples or self.reduce_batch_size == "never":
            return self
        parts = min(self.accumulation_steps, num_examples // devices)
        if not parts:
            raise UserError(
                f"the train split has only {num_examples} pictures, too few for a batch on "
                f"{devices} devices: set training.devices to one"
            )
        batch_size = num_examples - num_examples % (parts * devices)
        return dataclasses.replace(self, batch_size=batch_size, accumulation_steps=parts)

    def for_steps(self, steps: int) -> ResolvedTrainingConfig:
        """This configuration with this number of steps, whatever `epochs` says.

        A warm-up that is longer, or not set, becomes half of the steps.
        """
        warmup_steps = self.warmup_steps
        if warmup_steps is None or warmup_steps > steps:
            warmup_steps = steps // 2
        return dataclasses.replace(self, steps=steps, epochs=0.0, warmup_steps=warmup_steps)

    def with_found(self, found: Mapping[str, float]) -> ResolvedTrainingConfig:
        """This configuration with the hyperparameters that a search found.

        Args:
            found: By name, from `TuningConfig.space`. With another `lora_rank`, `lora_alpha`
                changes in proportion, so that the scale of the adapters stays the same.
        """
        values: dict[str, Any] = dict(found)
        if rank := values.get("lora_rank"):
            values["lora_alpha"] = self.lora_alpha * rank / self.lora_rank
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TuningConfig:
    """The hyperparameter search: successive halving on the held-out pictures that choose.

    Attributes:
        trials: Combinations of hyperparameters that are tried; 0 for no search.
        parallel_trials: On Vertex, machines that run trials in parallel.
        learning_rate: Lowest and highest learning rate; `None`: a tenth and ten times the
            configured one; empty: only the configured one.
        rank: Ranks of the adapters to choose from; empty: the configured one.
        ema_decay: Decays of the average to choose from, likewise.
        min_snr_gamma: Values of Min-SNR's gamma to choose from, likewise.
    """

    trials: Annotated[int, Field(ge=0, le=1000)] = 0
    parallel_trials: Annotated[int, Field(ge=1, le=100)] = 1
    learning_rate: (
        Annotated[tuple[PositiveFloat, ...], Field(strict=False, max_length=2)] | None
    ) = None
    rank: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    ema_decay: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(strict=False)] = ()
    min_snr_gamma: Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)] = ()

    @property
    def choices(self) -> dict[str, tuple[float, ...]]:
        """Discrete values to choose from, by the name of the training field."""
        named = {
            "lora_rank": self.rank,
            "ema_decay": self.ema_decay,
            "min_snr_gamma": self.min_snr_gamma,
        }
        return {name: tuple(values) for name, values in named.items() if values}

    def learning_rates(self, own: float) -> tuple[float, float] | None:
        """The lowest and the highest learning rate; `None` if it is not searched.

        Args:
            own: The configured learning rate.
        """
        if self.learning_rate is None:
            return own / _REACH, own * _REACH
        if not self.learning_rate:
            return None
        low, high = self.learning_rate
        return low, high


@dataclass(frozen=True, config=_STRICT)
class ValidationConfig:
    """The pictures drawn before and after fine-tuning.

    Attributes:
        prompts: What to draw, one picture each; `None`: held-out captions (see
            `trainer.data.prompts`).
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale; 1 turns guidance off.
        seed: Decides the initial noise.
        every_steps: Training steps between further drawings; 0: only before and after.
    """

    prompts: Prompts | None
    sampler: Sampler
    num_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: NonNegativeFloat
    seed: Seed
    every_steps: NonNegativeInt


@dataclass(frozen=True, config=_STRICT)
class WordSettings:
    """A new word, whose vectors are all that is trained.

    Attributes:
        token: See `trainer.text.new_word.NewWord`.
        initial: Likewise.
        initial_id: Likewise.
        vectors: Likewise.
        learned_from: File with the vectors to start with instead; see
            `trainer.weights.learned_embeds`.
        learned_sha256: SHA-256 (hex) of that file, so that a different file is a different run.
    """

    token: Text
    initial: Text
    initial_id: NonNegativeInt
    vectors: PositiveInt
    learned_from: Text | None = None
    learned_sha256: Text | None = None

    @property
    def word(self) -> NewWord:
        """The word itself."""
        return NewWord(self.token, self.initial, self.initial_id, self.vectors)

    @property
    def deciding(self) -> dict[str, Any]:
        """The fields that decide what is learned."""
        return {name: v for name, v in dataclasses.asdict(self).items() if name != "learned_from"}


@dataclass(frozen=True, config=_STRICT)
class TrainerSettings:
    """Everything passed to `run_fn`: the Trainer's `custom_config` and the run parameters.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        base_weights: `"default"`, `"random"` or an address; see `trainer.weights.base_model`.
        base_weights_hash: Hash of the base weights of all four networks, so that TFX's cache
            notices different weights at the same address.
        training: How to train.
        validation: The pictures that are drawn before, during and after training.
        checkpoint_dir: Folder for the checkpoints of all runs; each run finds its own by a hash.
        export_weights: Type in which the exported models store their weights.
        compute: Type in which they compute.
        code_version: Hash of the code of this package, so that TFX's cache notices code changes.
        image_to_image: Whether the image encoder is exported too, to draw from pictures.
        prediction: What the diffusion model learns to predict; `None` for the preset's prediction.
        zero_terminal_snr: Whether its last timestep is pure noise; `None`, likewise.
        prior_weight: Factor of the loss on class pictures; `None` if there are none.
        prompts_from_caption: Whether the prompts are made from a caption that the pictures have.
        word: A new word, which is then all that is trained; `None` for none.
    """

    preset: str
    image_size: int
    base_weights: str
    base_weights_hash: str
    training: ResolvedTrainingConfig
    validation: ValidationConfig
    checkpoint_dir: str
    export_weights: WeightsDtype
    compute: Compute
    code_version: str
    image_to_image: bool = False
    prediction: Prediction | None = None
    zero_terminal_snr: bool | None = None
    prior_weight: PositiveFloat | None = None
    prompts_from_caption: bool = False
    word: WordSettings | None = None

    def trained_preset(self, preset: Preset) -> Preset:
        """The preset of the trained model.

        Args:
            preset: The preset of the base weights, which may predict something else.
        """
        usual = get_preset(self.preset)
        return preset.trained_as(
            usual.prediction if self.prediction is None else self.prediction,
            usual.zero_terminal_snr if self.zero_terminal_snr is None else self.zero_terminal_snr,
        )

    def to_json(self) -> dict[str, Any]:
        """The `custom_config`: all but `training.run_parameters`, which are passed separately."""
        apart = {"training": set(RunParameters.__required_keys__)}
        tree: dict[str, Any] = TypeAdapter(TrainerSettings).dump_python(
            self, mode="json", exclude=apart
        )
        # Defaults are left out, so that a run is the same as before they existed, in the cache too.
        for name in ("image_to_image", "prompts_from_caption"):
            if not tree[name]:
                del tree[name]
        for name in ("prediction", "zero_terminal_snr", "prior_weight", "word"):
            if tree[name] is None:
                del tree[name]
        for field in dataclasses.fields(TrainingConfig):
            if field.name in _LATER and tree["training"][field.name] == field.default:
                del tree["training"][field.name]
        return tree

    @classmethod
    def from_json(cls, custom_config: Mapping[str, Any], run: Mapping[str, Any]) -> TrainerSettings:
        """The settings of a run.

        Args:
            custom_config: What `to_json` made.
            run: `RunParameters`. If they were given to a compiled pipeline, the configuration has
                not checked them. So steps take precedence over epochs, and a warm-up longer than
                the steps is shortened to half of them.

        Raises:
            ValueError: A value is missing, unknown or out of range.
        """
        steps = run["steps"]
        training = ResolvedTrainingConfig(
            **custom_config["training"],
            steps=None,
            learning_rate=run["learning_rate"],
            seed=run["seed"],
        )
        if steps < 0 or (steps == STEPS_BY_EPOCHS and not training.epochs):
            raise ValueError(f"steps is {steps}; it must be at least 1, or 0 with epochs")
        if steps != STEPS_BY_EPOCHS:
            training = training.for_steps(steps)
        validation = ValidationConfig(**custom_config["validation"])
        told = {**custom_config, "training": training, "validation": validation}
        if "word" in custom_config:
            told["word"] = WordSettings(**custom_config["word"])
        return cls(**told)
