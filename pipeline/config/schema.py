"""The tree of settings: all keys, and what each may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.vertex.config import VertexConfig
from storage.plain_text import plain
from storage.user_errors import UserError
from trainer.presets import Prediction, Sampler
from trainer.training_config import (
    Compute,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ResolvedTrainingConfig,
    Seed,
    Text,
    Texts,
    TrainingConfig,
    TuningConfig,
    ValidationConfig,
    WeightsDtype,
)

_STRICT = ConfigDict(extra="forbid", strict=True)

DiskCheck = Literal["refuse", "warn"]
VariableName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of an environment variable, such as SIGNING_KEY",
    ),
]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Distance = Annotated[float, Field(ge=0, le=1)]
KeepRuns = Annotated[int, Field(ge=0)]


BASE, LATEST_BLESSED, RELEASE = "base", "latest_blessed", "release:"
"""Values of `model.start_from`, the last with a number after it; other values are places."""


class ConfigError(UserError, ValueError):
    """A setting is impossible; the message is one line for the user."""


def names_place(start_from: str) -> bool:
    """Whether a value of `model.start_from` is a folder's path or address."""
    return start_from not in (BASE, LATEST_BLESSED) and not start_from.startswith(RELEASE)


@dataclass(frozen=True, config=_STRICT)
class DatasetConfig:
    """What to train on.

    Attributes:
        path: Folder, archive or URL, or a dataset of the Hugging Face hub.
        config: The dataset's configuration; `None` for the default one.
        split: The dataset's own split to read, several joined by `+`, or `all`.
        image_column: Column with the pictures; `None` to find it.
        caption_column: Column with the captions; `None` to find it.
        eval_fraction: Fraction of the pictures held out for evaluation.
        seed: Decides which pictures are held out.
        max_pixels: Larger pictures are set aside.
        max_aspect_ratio: Pictures whose sides differ by a larger factor are set aside.
        max_rejected_fraction: Fraction of unusable rows above which the run stops.
        near_duplicates: What to do with nearly identical pictures.
        caption_template: Template with `{caption}` for all captions; `None` for none.
        tag_shuffle: Number of variants of every caption with its tags in another order; 0 for none.
        tag_keep: Number of tags at the front that stay in place.
        tag_dropout: Probability of leaving each of the other tags out of a variant.
        schema: File with a schema to validate against; `None` to infer one.
        fail_on_anomalies: Whether an anomaly in the statistics stops the run.
        form: How to read the dataset's files; `None` to infer it from them.
        caption: The caption of pictures that have none; `None` for no such caption.
        captions_from: Where the captions of pictures that have none come from.
        caption_lines: Whether the lines of a caption file are joined or are one caption each.
        withdrawn: File that lists what to take out of the dataset; `None` for nothing.
    """

    path: Text
    config: Text | None
    split: Text
    image_column: Text | None
    caption_column: Text | None
    eval_fraction: Fraction
    seed: Seed
    max_pixels: Annotated[int, Field(ge=1)]
    max_aspect_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    near_duplicates: Literal["keep_together", "keep_one", "ignore"]
    caption_template: Text | None
    tag_shuffle: Annotated[int, Field(ge=0, le=64)]
    tag_keep: Annotated[int, Field(ge=0)]
    tag_dropout: Annotated[float, Field(ge=0, lt=1)]
    schema: Text | None
    fail_on_anomalies: bool
    form: Text | None
    caption: Text | None
    captions_from: Literal["folder", "file_name", "parameters"] | None
    caption_lines: Literal["joined", "each"]
    withdrawn: Text | None


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """What to fine-tune.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        base_weights: `default`, `random`, or a folder, bucket or model of the hub with the weights,
            or a single file in one of these.
        prediction: What the model learns to predict; `None` for what the base weights predict.
        zero_terminal_snr: Whether its last timestep is pure noise; `None` for what the base weights
            were trained with.
        start_from: What training starts from: `base`, the base weights; `latest_blessed`;
            `release:N`; or the folder of a model that the Trainer wrote.
        allow_withdrawn: Whether that may be a model that has learned from what `dataset.withdrawn`
            lists.
        flip: Whether to train on mirror images, too; `auto`: unless a caption says left or right.
        crop: Which part of a non-square picture to keep.
        buckets: Whether pictures keep their shape, as far as the next four settings allow.
        bucket_step: Sides are multiples of it; `None`: of the smallest step that the preset allows.
        bucket_max_pixels: The most pixels of a picture; `None`: those of the square.
        bucket_min_side: The shortest side; `None`: half of the square's.
        bucket_max_side: The longest side; `None`: twice the square's.
        export_weights: Type of the stored weights of the exported models.
        compute: Type that they compute in; `auto`: the fastest type that the Trainer finds.
        take_over_latents: Whether to reuse latents of unchanged pictures from former runs.
    """

    preset: Text
    image_size: Annotated[int, Field(ge=1)]
    base_weights: Text
    prediction: Prediction | None
    zero_terminal_snr: bool | None
    start_from: Text
    allow_withdrawn: bool
    flip: Literal["auto", "always", "never"]
    crop: Literal["centre", "random"]
    buckets: bool
    bucket_step: PositiveInt | None
    bucket_max_pixels: PositiveInt | None
    bucket_min_side: PositiveInt | None
    bucket_max_side: PositiveInt | None
    export_weights: WeightsDtype
    compute: Compute
    take_over_latents: bool


@dataclass(frozen=True, config=_STRICT)
class PriorConfig:
    """Pictures of a subject's class, which the model should still draw as before.

    Attributes:
        caption: What they show, such as `a photo of a dog`; `None`: there are none.
        folder: Where they are; `None`: the base weights draw them.
        folder_fingerprint: Hash of the folder's content, which `resolve_dataset` fills in.
        pictures: How many to draw.
        seed: Seed of the first picture.
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        weight: Factor for their loss.
        scenes: Additions to the captions of the subject and of its class, for the pictures drawn
            before and after training.
        num_compared: Number of pictures of the class that base weights and fine-tuned model draw
            for comparison.
        max_distance: How far these may have moved for the model to be blessed; `None`: no limit.
    """

    caption: Text | None
    folder: Text | None
    folder_fingerprint: Text | None
    pictures: Annotated[int, Field(ge=1, le=100_000)]
    seed: Seed
    sampler: Sampler
    num_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: NonNegativeFloat
    weight: PositiveFloat
    scenes: Annotated[Texts, Field(max_length=31)]
    num_compared: Annotated[int, Field(ge=0, le=10_000)]
    max_distance: NonNegativeFloat | None

    @property
    def plain_caption(self) -> str:
        """The caption in the normal form of captions; "" if there is no class."""
        return plain(self.caption or "").strip()


@dataclass(frozen=True, config=_STRICT)
class WordConfig:
    """A new word, of which only the vectors are learned (textual inversion).

    Attributes:
        token: The word, such as `<creature>`; `None`: no word is learned.
        initial: The word that its vectors start as, and that replaces it in prompts for the base
            weights.
        vectors: Number of its vectors.
        templates: What replaces captions without the word: sentences about an `object` or a
            `style`; `None`: such captions are set aside.
        learned_from: File with vectors to start from instead; `None` for none.
    """

    token: Text | None
    initial: Text | None
    vectors: Annotated[int, Field(ge=1, le=64)]
    templates: Literal["object", "style"] | None
    learned_from: Text | None


@dataclass(frozen=True, config=_STRICT)
class DriftConfig:
    """How far the dataset may be from the one of the model that training starts from.

    Attributes:
        caption_length: Jensen-Shannon divergence of the caption lengths; `None`, here and below:
            not compared.
        words: The same of the words of the captions.
        size: The same of width, of height and of aspect ratio.
        brightness: The same of the mean luma of the pictures.
        format: Change of the share of any file format.
        rejected: Change of the share of rows that are set aside.
        fail_on_drift: Whether the run stops if a limit is exceeded.
    """

    caption_length: Distance | None
    words: Distance | None
    size: Distance | None
    brightness: Distance | None
    format: Distance | None
    rejected: Distance | None
    fail_on_drift: bool

    @property
    def thresholds(self) -> dict[str, float]:
        """What is compared, and its limit."""
        found = dataclasses.asdict(self)  # type: ignore[call-overload]
        del found["fail_on_drift"]
        return {name: distance for name, distance in found.items() if distance is not None}


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """How the fine-tuned model is judged.

    Attributes:
        num_strata: Number of equal parts of the noise schedule; timesteps are drawn from each part
            for every held-out picture.
        min_draws: Minimum number of timesteps drawn from each part, over all held-out pictures.
        seed: Decides timesteps and noise.
        baseline: What a model is compared with; `started_from`: what its training started from.
        min_loss_improvement: How far the held-out loss must be below the baseline's for the
            model to be blessed.
        max_loss_regression: How far above the baseline's loss the interval may reach.
        max_stratum_regression: The same in any part of the noise schedule in which a regression is
            shown, as a fraction of the baseline's loss there.
        when_unsure: What to do with a model for which it is uncertain whether it is better.
        num_samples: Number of held-out captions to draw pictures for.
        measures: Measures of these pictures besides those taken for every dataset; `None` for those
            that the dataset requests, which `resolve_dataset` fills in.
        clip_model: Folder, bucket or model of the hub with a CLIP model to score them; `None` for
            none.
        num_training_pictures: Number of training pictures scored beside the held-out ones.
        num_training_samples: Number of captions of training pictures to draw pictures for, to find
            copies.
        max_memorization_gap: How far the loss on training pictures may be below the held-out loss,
            as a fraction of it, for the model to be blessed; `None`: no limit.
        max_copies: Which fraction of the pictures for captions of training pictures may be copies;
            `None`: no limit.
    """

    num_strata: Annotated[int, Field(ge=1, le=1000)]
    min_draws: Annotated[int, Field(ge=1, le=10_000)]
    seed: Seed
    baseline: Literal["latest_blessed", "base_weights", "started_from"]
    min_loss_improvement: Annotated[float, Field(allow_inf_nan=False)]
    max_loss_regression: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_stratum_regression: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    when_unsure: Literal["push", "refuse"]
    num_samples: Annotated[int, Field(ge=0, le=10_000)]
    measures: Texts | None
    clip_model: Text | None
    num_training_pictures: Annotated[int, Field(ge=0, le=10_000)]
    num_training_samples: Annotated[int, Field(ge=0, le=10_000)]
    max_memorization_gap: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    max_copies: Annotated[float, Field(ge=0, le=1)] | None


@dataclass(frozen=True, config=_STRICT)
class ServingConfig:
    """What is pushed.

    Attributes:
        canary: Whether a model must draw a picture in a fresh process to be pushed.
        keep_versions: Number of newest releases to keep, besides the current one; 0 for all.
        image_to_image: Whether the image encoder is pushed, too, to draw from pictures.
        checkpoint: Type of the weights in the single file that other tools open; `None` for no such
            file.
        batch_size: The most pictures that TensorFlow Serving draws together; 1 for each by itself.
        publish_captions: Whether a release may contain captions of the dataset, or their words.
        sign_key: File with the private key that releases are signed with; `None` for none.
        sign_key_env: Name of the environment variable that holds the key instead; `None` for none.
        c2pa_certificate: File with the certificates that pictures of a release are signed with;
            `None` for no signature.
        c2pa_key_env: Name of the environment variable that holds their key where pictures are
            drawn.
    """

    canary: bool
    keep_versions: Annotated[int, Field(ge=0)]
    image_to_image: bool
    checkpoint: WeightsDtype | None
    batch_size: Annotated[int, Field(ge=1, le=64)]
    publish_captions: bool
    sign_key: Text | None
    sign_key_env: VariableName | None
    c2pa_certificate: Text | None
    c2pa_key_env: VariableName | None


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """Everything that a run depends on, with no field left open; see `load_config`.

    Attributes:
        output: Folder that a run writes everything to.
        keep_runs: Number of newest runs in it that keep what they made; 0 for all.
        keep_checkpoints: Whether their finished trainings keep their checkpoints, too.
        disk_check: What to do with a run that will not fit on the disk.
    """

    dataset: DatasetConfig
    drift: DriftConfig
    model: ModelConfig
    word: WordConfig
    training: ResolvedTrainingConfig
    tuning: TuningConfig
    validation: ValidationConfig
    prior: PriorConfig
    evaluation: EvaluationConfig
    serving: ServingConfig
    vertex: VertexConfig
    output: Text
    keep_runs: KeepRuns
    keep_checkpoints: bool
    disk_check: DiskCheck


SECTIONS: Mapping[str, type] = {
    "dataset": DatasetConfig,
    "drift": DriftConfig,
    "model": ModelConfig,
    "word": WordConfig,
    "training": TrainingConfig,
    "tuning": TuningConfig,
    "validation": ValidationConfig,
    "prior": PriorConfig,
    "evaluation": EvaluationConfig,
    "serving": ServingConfig,
    "vertex": VertexConfig,
}
"""The class of every section as given; the preset decides values that are left open."""


OUTPUT, FOLDER = "output", "folder"
"""The output folder's key; in a file it is a section with the folder under the second name, or just
the folder."""
KEEPING = ("keep_runs", "keep_checkpoints")
"""The other keys in that section."""
OF_RUN = (OUTPUT, *(f"{OUTPUT}.{name}" for name in KEEPING), "disk_check")
"""Keys outside the sections that have classes."""


def keys() -> Iterator[str]:
    """Every dotted key, such as `training.steps`."""
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            yield f"{section}.{field.name}"
    yield from OF_RUN
