"""The tree of settings: what keys there are, and what each may be."""

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
"""Values of `model.start_from`, the last one with a number behind it; others are places."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be; the message is one line for the user."""


def names_place(start_from: str) -> bool:
    """Whether a value of `model.start_from` is a folder's path or address."""
    return start_from not in (BASE, LATEST_BLESSED) and not start_from.startswith(RELEASE)


@dataclass(frozen=True, config=_STRICT)
class DatasetConfig:
    """What to train on.

    Attributes:
        path: Folder, archive or URL, or a dataset of the Hugging Face hub.
        config: The dataset's configuration; `None` for its default one.
        split: The dataset's own split to read, several joined by `+`, or `all`.
        image_column: Column with the pictures; `None` to find it.
        caption_column: Column with the captions; `None` to find it.
        eval_fraction: Fraction of the pictures held out for evaluation.
        seed: Decides which pictures are held out.
        max_pixels: Larger pictures are set aside.
        max_aspect_ratio: Pictures whose sides differ by a larger factor are set aside.
        max_rejected_fraction: Fraction of unusable rows above which the run stops.
        near_duplicates: What becomes of pictures that are nearly the same.
        caption_template: Text with `{caption}` in it that captions are put into; `None` for none.
        tag_shuffle: Variants of every caption with its tags in another order; 0 for none.
        tag_keep: Tags in front that stay where they are.
        tag_dropout: Probability of the other tags to be left out of a variant.
        schema: File with a schema to validate against; `None` to infer one.
        fail_on_anomalies: Whether an anomaly in the statistics stops the run.
        form: What the dataset's files are taken for; `None` to tell from them.
        caption: The caption of pictures that have none; `None` for nothing of the kind.
        captions_from: What makes the captions of pictures that have none.
        caption_lines: Whether the lines of a caption's file are one caption or one each.
        withdrawn: File that lists what is taken out; `None` for nothing.
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
            or a single file in one.
        prediction: What the model learns to predict; `None` for what the base weights do.
        zero_terminal_snr: Whether its last timestep is noise alone; `None` for what the base
            weights were trained with.
        start_from: What training starts from: `base`, the base weights; `latest_blessed`;
            `release:N`; or the folder of a model as the Trainer leaves it.
        allow_withdrawn: Whether that may be a model that knew what `dataset.withdrawn` lists.
        flip: Whether mirror images are trained on too; `auto`: unless a caption says left or right.
        crop: Which part of a picture that is not square is kept.
        buckets: Whether pictures keep their shape, as far as the next four allow.
        bucket_step: Sides are multiples of it; `None`: of what the preset can draw.
        bucket_max_pixels: The most pixels of a picture; `None`: those of the square.
        bucket_min_side: The shortest side; `None`: half of the square's.
        bucket_max_side: The longest side; `None`: twice the square's.
        export_weights: What the exported models store their weights as.
        compute: What they compute in; `auto`: what the Trainer finds to be fastest.
        take_over_latents: Whether what former runs encoded of unchanged pictures is taken over.
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
    """Pictures of a subject's class, which the model is to draw as before.

    Attributes:
        caption: What is on them, such as `a photo of a dog`; `None`: there are none.
        folder: Where they are; `None`: the base weights draw them.
        folder_fingerprint: Hash of what is there, which `resolve_dataset` writes out.
        pictures: How many are drawn.
        seed: The first one's.
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        weight: What their loss is multiplied by.
        scenes: What is added to the caption of the subject, and to that of its class, for what is
            drawn before and after.
        num_compared: Pictures of the class that base weights and fine-tuned model draw to compare.
        max_distance: How far those may have moved for the model to be blessed; `None`: as far as
            they have.
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
        """The caption in the form that captions have; "" where there are no pictures."""
        return plain(self.caption or "").strip()


@dataclass(frozen=True, config=_STRICT)
class WordConfig:
    """A new word, whose vectors alone are learned (textual inversion).

    Attributes:
        token: How it is written, such as `<creature>`; `None`: no word is learned.
        initial: The word that its vectors begin as, and that the base weights are asked for.
        vectors: How many it has.
        templates: What takes the place of captions that lack it: sentences about an `object` or a
            `style`; `None`: such captions are set aside.
        learned_from: File of vectors that it begins with instead; `None` for none.
    """

    token: Text | None
    initial: Text | None
    vectors: Annotated[int, Field(ge=1, le=64)]
    templates: Literal["object", "style"] | None
    learned_from: Text | None


@dataclass(frozen=True, config=_STRICT)
class DriftConfig:
    """How far the dataset may be from that of the run which made the model started from.

    Attributes:
        caption_length: Jensen-Shannon divergence of the captions' lengths; `None`, here and below:
            is not compared.
        words: Of the captions' words.
        size: Of width, of height and of aspect ratio.
        brightness: Of the pictures' mean luma.
        format: Change of any file format's share.
        rejected: Change of the share of rows that are set aside.
        fail_on_drift: Whether more than that stops the run.
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
        """What is compared, and how far it may be."""
        found = dataclasses.asdict(self)  # type: ignore[call-overload]
        del found["fail_on_drift"]
        return {name: distance for name, distance in found.items() if distance is not None}


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """How the fine-tuned model is judged.

    Attributes:
        num_strata: Equal parts of the noise schedule, from each of which timesteps are drawn for
            every held-out picture.
        min_draws: Timesteps drawn from each part, at least, over all held-out pictures together.
        seed: Decides timesteps and noise.
        baseline: What a model is compared with; `started_from`: what its training started from.
        min_loss_improvement: How far the held-out loss must be below the baseline's for the
            model to be blessed.
        max_loss_regression: How far above the baseline's the interval may say that it is.
        max_stratum_regression: The same in any part of the noise schedule where a regression is
            shown, as a fraction of the baseline's loss there.
        when_unsure: What becomes of a model of which can be told neither that it is better nor that
            it is not.
        num_samples: Held-out captions that pictures are drawn for.
        measures: Measures of these pictures that are taken beside those of every dataset; `None`
            for what the dataset asks for, which `resolve_dataset` writes out.
        clip_model: Folder, bucket or model of the hub with a CLIP to score them; `None` for none.
        num_training_pictures: Training pictures that are scored beside the held-out ones.
        num_training_samples: Captions of training pictures that pictures are drawn for, to look for
            copies.
        max_memorization_gap: How far the loss on training pictures may be below the held-out one,
            as a fraction of it, for the model to be blessed; `None` for as far as it is.
        max_copies: How many of the pictures for captions of training pictures may be copies, as a
            fraction; `None` for as many as there are.
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
        keep_versions: Newest releases that are kept, and the current one; 0 for all.
        image_to_image: Whether the image encoder is pushed, too, to draw from pictures.
        checkpoint: What the weights are stored as in the one file that other tools open; `None` for
            no such file.
        batch_size: The most pictures that TensorFlow Serving draws together; 1 for each by itself.
        publish_captions: Whether captions of the dataset, or their words, may be in a release.
        sign_key: File with the private key that releases are signed with; `None` for none.
        sign_key_env: Or the environment variable that holds it, by its name; `None` for none.
        c2pa_certificate: File with the certificates that pictures of a release are signed with;
            `None` for no signature.
        c2pa_key_env: The environment variable that holds their key where pictures are drawn.
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
        output: Folder that everything of a run is written under.
        keep_runs: Newest runs in it that keep what they made; 0 for all.
        keep_checkpoints: Whether their finished trainings keep their checkpoints, too.
        disk_check: What happens to a run that will not fit on the disk.
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
"""The class of every section, as it is given; what is left open in it, a preset decides."""


OUTPUT, FOLDER = "output", "folder"
"""The output folder's key; in a file it is a section, in which the folder itself has this name, or
that folder alone."""
KEEPING = ("keep_runs", "keep_checkpoints")
"""What else is in that section."""
OF_RUN = (OUTPUT, *(f"{OUTPUT}.{name}" for name in KEEPING), "disk_check")
"""Keys outside of the sections of other classes."""


def keys() -> Iterator[str]:
    """Every dotted key, such as `training.steps`."""
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            yield f"{section}.{field.name}"
    yield from OF_RUN
