"""What one training run depends on: its hyperparameters, and all else that `run_fn` is told."""

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
"""What weights are stored as."""

ComputeDtype = Literal["float32", "bfloat16", "float16"]
"""What exported networks compute in."""

Compute = Literal["auto", ComputeDtype]
"""What is asked for; `auto`: what is found to be fastest."""

STEPS_BY_EPOCHS = 0
"""Value of the run parameter `steps` where `epochs` says how long."""

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        "epochs",  # `steps` says what they came to
        "reduce_batch_size",  # `batch_size` says to what
        "memory_check",
        "checkpoint_every_steps",
        "checkpoints_kept",
        "log_every_steps",
    }
)
"""Fields of a resolved `TrainingConfig` that change nothing about what is trained."""

TUNED = "tuned"
"""Key beside the run parameters with the hyperparameters that the Tuner found, where it did."""

CLASS_LATENTS = "class_latents"
"""Key beside them with the folder of the latents of class pictures, where such are trained on."""

_OF_CHOICE = ("keep", "stop_early", "evaluate_every_steps", "choose_from_pictures")

# Without these at their defaults, a run is what it was before there was a choice.
_LATER = (*_OF_CHOICE, "optimizer")

# How far from the training's own learning rate it is searched for where no range is given.
_REACH = 10.0

_STRICT = ConfigDict(extra="forbid", strict=True)


class RunParameters(TypedDict):
    """What whoever starts a compiled pipeline can change: properties of their own of the step."""

    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """Hyperparameters; `None` means "what the preset recommends".

    Attributes:
        steps: Optimizer steps.
        epochs: Instead of `steps`: times that every example is seen; 0 leaves it to `steps`.
        batch_size: Examples an optimizer step, over all devices.
        reduce_batch_size: Whether a batch larger than the train split is reduced to it, rather
            than an error; `auto`: where `batch_size` is the preset's.
        accumulation_steps: Parts in which a batch is computed, one after another.
        optimizer: What the updates are made by.
        learning_rate: The optimizer's, at the end of the warm-up.
        learning_rate_schedule: How it goes on from there: `constant`, or `linear` or `cosine` down
            to zero at the last step.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        weight_decay: Decoupled weight decay.
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
        precision: What the networks compute in; weights, loss, noise and average are float32. With
            `auto`, what the machine that trains computes fastest: bfloat16 or float32.
        xla: Whether XLA compiles the step; `auto` where there is a GPU.
        gradient_checkpointing: Whether the backward pass computes a block's inner values again.
        devices: `all` GPUs, and all workers in `TF_CONFIG`; or `one`.
        memory_check: What happens to a run that will not fit into memory.
        checkpoint_every_steps: Steps between checkpoints.
        checkpoints_kept: Latest checkpoints that are kept.
        log_every_steps: Steps between logged values.
        evaluate_every_steps: Steps between held-out losses; 0 for none, `None` for twenty a run.
        keep: Which weights are exported: those of the `last` step, or of the `best` one.
        stop_early: Evaluations without a lower held-out loss after which training stops; 0: never.
        choose_from_pictures: Held-out pictures below which nothing is chosen by them.
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
            # What no preset recommends may stay open.
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

    # Without `field()` they would keep the default of being open.
    batch_size: PositiveInt = dataclasses.field()
    reduce_batch_size: Literal["always", "never"] = dataclasses.field()
    learning_rate: PositiveFloat = dataclasses.field()
    learning_rate_schedule: LearningRateSchedule = dataclasses.field()
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = dataclasses.field()
    train_text_encoder: bool = dataclasses.field()
    precision: PrecisionSetting = dataclasses.field()

    @property
    def chooses(self) -> bool:
        """Whether held-out pictures are to decide what is exported."""
        return self.keep == "best" or self.stop_early > 0

    @property
    def deciding(self) -> dict[str, Any]:
        """The fields that decide the weights, where nothing is chosen those of former versions."""
        without = {*WITHOUT_EFFECT_ON_WEIGHTS, *(() if self.chooses else _OF_CHOICE)}
        if self.optimizer == TrainingConfig.optimizer:
            without.add("optimizer")
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in without
        }

    @property
    def run_parameters(self) -> RunParameters:
        """Those of these values that a compiled pipeline can be started with others of."""
        steps = STEPS_BY_EPOCHS if self.steps is None else self.steps
        return {"steps": steps, "learning_rate": self.learning_rate, "seed": self.seed}

    def for_examples(
        self, num_examples: int, preset: Preset, devices: int = 1
    ) -> ResolvedTrainingConfig:
        """This configuration with a batch that there are examples for, and the steps of `epochs`.

        Args:
            num_examples: Examples of the train split.
            preset: Recommends a warm-up, shortened to half of the steps, where none is given.
            devices: How many share a batch. A reduced one is a multiple of them times
                `accumulation_steps`, of which it has fewer where there are fewer pictures.

        Raises:
            UserError: The batch is to be reduced and cannot be shared out then, or the warm-up
                that was given is longer than the steps.
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
                f"{num_examples} pictures are {steps} steps; it must be at most as many"
            )
        return dataclasses.replace(fitting, steps=steps, warmup_steps=warmup_steps)

    def _with_batch_for(self, num_examples: int, devices: int) -> ResolvedTrainingConfig:
        """With a batch that there are examples for, in fewer parts where there are too few."""
        if self.batch_size <= num_examples or self.reduce_batch_size == "never":
            return self
        parts = min(self.accumulation_steps, num_examples // devices)
        if not parts:
            raise UserError(
                f"the train split has only {num_examples} pictures, and a batch is shared out to "
                f"{devices} devices: set training.devices to one"
            )
        batch_size = num_examples - num_examples % (parts * devices)
        return dataclasses.replace(self, batch_size=batch_size, accumulation_steps=parts)

    def for_steps(self, steps: int) -> ResolvedTrainingConfig:
        """This configuration with so many steps, whatever `epochs` says.

        A warm-up that is longer, or open, becomes half of them.
        """
        warmup_steps = self.warmup_steps
        if warmup_steps is None or warmup_steps > steps:
            warmup_steps = steps // 2
        return dataclasses.replace(self, steps=steps, epochs=0.0, warmup_steps=warmup_steps)

    def with_found(self, found: Mapping[str, float]) -> ResolvedTrainingConfig:
        """This configuration with hyperparameters that a search has found.

        Args:
            found: By name, of `TuningConfig.space`. With another `lora_rank`, `lora_alpha` changes
                in proportion, so that the adapters count as much as before.
        """
        values: dict[str, Any] = dict(found)
        if rank := values.get("lora_rank"):
            values["lora_alpha"] = self.lora_alpha * rank / self.lora_rank
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TuningConfig:
    """The search for hyperparameters, by successive halving on the held-out pictures that choose.

    Attributes:
        trials: Settings of hyperparameters that are tried; 0: none are.
        parallel_trials: On Vertex, machines that try them side by side.
        learning_rate: Lowest and highest one; `None`: a tenth and ten times the training's own;
            nothing: its own alone.
        rank: Ranks of the adapters to choose from; nothing: the training's own.
        ema_decay: Decays of the average to choose from, likewise.
        min_snr_gamma: Of Min-SNR, likewise.
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
        """What is chosen of single values, by the names of the training's fields."""
        named = {
            "lora_rank": self.rank,
            "ema_decay": self.ema_decay,
            "min_snr_gamma": self.min_snr_gamma,
        }
        return {name: tuple(values) for name, values in named.items() if values}

    def learning_rates(self, own: float) -> tuple[float, float] | None:
        """The lowest and the highest learning rate; `None` where none is searched for.

        Args:
            own: The training's.
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
        prompts: What to draw, one picture each; `None`: captions that are held out (see
            `trainer.data.prompts`).
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale; 1 is none.
        seed: Decides the initial noise.
        every_steps: Training steps after which they are drawn, too; 0: only before and after.
    """

    prompts: Prompts | None
    sampler: Sampler
    num_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: NonNegativeFloat
    seed: Seed
    every_steps: NonNegativeInt


@dataclass(frozen=True, config=_STRICT)
class WordSettings:
    """A new word, whose vectors are trained and nothing else.

    Attributes:
        token: See `trainer.text.new_word.NewWord`.
        initial: Likewise.
        initial_id: Likewise.
        vectors: Likewise.
        learned_from: File of vectors that it begins with instead; see
            `trainer.weights.learned_embeds`.
        learned_sha256: SHA-256 (hex) of that, so that another one in its place is another run.
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
    """All that `run_fn` is told, the Trainer's `custom_config` and run parameters.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        base_weights: `"default"`, `"random"` or a place; see `trainer.weights.base_model`.
        base_weights_hash: Hash of all four networks' base weights; it makes TFX's cache see other
            weights at the same place.
        training: How to train.
        validation: The pictures that are drawn before, in between and after.
        checkpoint_dir: Folder for the checkpoints of all runs; a run finds its own by a hash.
        export_weights: What the exported models store their weights as.
        compute: What they compute in.
        code_version: Hash of this package's code; it makes TFX's cache see code changes.
        image_to_image: Whether the image encoder is exported, too, to draw from pictures.
        prediction: What the diffusion model learns to predict; `None` for what the preset's does.
        zero_terminal_snr: Whether its last timestep is to be noise alone; `None`, likewise.
        prior_weight: What the loss on class pictures is multiplied by; `None` where there are none.
        prompts_from_caption: Whether what is drawn is made of a caption that the pictures have.
        word: A new word, which alone is trained; `None` for none.
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
            preset: That of the base weights, which may predict something else.
        """
        usual = get_preset(self.preset)
        return preset.trained_as(
            usual.prediction if self.prediction is None else self.prediction,
            usual.zero_terminal_snr if self.zero_terminal_snr is None else self.zero_terminal_snr,
        )

    def to_json(self) -> dict[str, Any]:
        """The `custom_config`: all but `training.run_parameters`, which go beside it."""
        apart = {"training": set(RunParameters.__required_keys__)}
        tree: dict[str, Any] = TypeAdapter(TrainerSettings).dump_python(
            self, mode="json", exclude=apart
        )
        # Without these, a run is what it was before there was a choice, in the cache, too.
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
            run: `RunParameters`. Given to a compiled pipeline, they have not seen the
                configuration's checks. So steps have precedence over epochs, and a warm-up longer
                than they are is shortened to half of them.

        Raises:
            ValueError: A value is missing, unknown or out of its range.
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
