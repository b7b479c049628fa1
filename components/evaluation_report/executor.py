"""The work of EvaluationReport."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from markupsafe import Markup
from PIL import Image
from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.evaluation_report import charts, examples
from components.evaluation_report.pictures import Pair, before_after
from components.evaluation_report.remembered import Remembered, remembered
from components.evaluation_report.thresholds import Threshold, thresholds
from components.evaluator.executor import REASONS
from components.evaluator.results import ALL, Metric, Metrics, Slice, of_feature, read_metrics
from components.loss_scorer.executor import BASE_WEIGHTS_LABEL
from components.loss_scorer.scorer import CAPTION_BUCKET, PICTURE_SIZE, STRATUM
from components.measures import MEASURES
from components.measures.class_distance import CLASS_CAPTION, CLASS_DISTANCE, NUM_CLASS_PICTURES
from components.pages import RELEASE_PLACE
from components.pages.page import data_uri, render
from storage.model_manifest import ModelManifest
from storage.progress import Work, WorkProgress
from storage.verdict import UNSURE, VERDICT
from trainer.diffusion.draws import draw_noise
from trainer.training.evaluations import read_evaluations

PAGE_NAME = "evaluation.html"
BEFORE_AFTER_NAME = "before_after.png"
LOSS_CURVE_NAME = "loss_curve.png"
SUMMARY_NAME = "summary.json"

_TEMPLATE_NAME = "template.html"
_SPLIT = "eval"
_BASE_PICTURES = "step_000000"
_NUM_EXTREMES = 4
_NOTHING = Metric(math.nan)
_LAST_TIMESTEP = 1000.0
# Pictures up to this size are kept unchanged; the page has copies of this size of larger ones.
_KEPT_SIZE = 256
_FORMER_STEPS = 25
_JPEG_QUALITY = 85
_SUMMARIZED_TRAINING = ("steps", "batch_size", "learning_rate", "seed")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Findings:
    """What is known about a model when its report is written.

    Attributes:
        model: Its URI.
        serving: Folder of its SavedModels.
        manifest: Its manifest.
        history: The records of its training.
        evaluations: Steps of its training and their held-out losses.
        validation: Folder with the pictures that its training drew.
        sampling: `prompts`, `seed`, `sampler`, `num_steps` and `guidance_scale` of these pictures.
        baseline: The model that it was compared with.
        before: The model that its training started from, and drew with before its first step.
        blessed: Whether it may be pushed.
        verdict: `blessed`, `unsure` or `refused`.
        reasons: Why it is not `blessed`.
        metrics: TFMA's metrics of every slice.
        num_examples: Number of held-out examples.
        num_sampled: Number of these that pictures were drawn for.
        num_pictures: Number of their pictures.
        num_choosing: Number of other held-out examples, which chose a model.
        num_trained_on: Number of other held-out examples on whose pictures a model was trained
            before.
        num_strata: Parts of the noise schedule in which each was scored, once or several times.
        asked: What it had to show to be blessed.
        origin: Its origin: run, date and dataset, by label.
        remembered: What it remembers of its training pictures; `None` if this was not examined.
        of_class: How a subject's class is drawn, in words; empty if there is no class.
    """

    model: str
    serving: str
    manifest: ModelManifest
    history: list[dict[str, float]]
    evaluations: list[tuple[int, float]]
    validation: str
    sampling: Mapping[str, Any]
    baseline: str
    before: str
    blessed: bool
    verdict: str
    reasons: list[str]
    metrics: dict[Slice, Metrics]
    num_examples: int
    num_sampled: int
    num_pictures: int
    num_choosing: int
    num_trained_on: int
    num_strata: int
    asked: list[Threshold]
    origin: Mapping[str, str]
    remembered: Remembered | None
    of_class: str

    @property
    def said(self) -> str:
        """The verdict in words."""
        if self.verdict == UNSURE:
            return "Unsure, pushed anyway" if self.blessed else "Unsure, not blessed"
        return "Blessed" if self.blessed else "Not blessed"

    @property
    def total(self) -> Metrics:
        """The metrics over all rows."""
        return self.metrics.get(ALL, {})

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps at which each held-out example was scored."""
        rows = self.total.get("example_count", _NOTHING).value
        return int(rows) // self.num_examples if self.num_examples else self.num_strata

    @property
    def loss(self) -> Metric:
        """Held-out loss of the model."""
        return self.total.get("loss", _NOTHING)

    @property
    def loss_baseline(self) -> Metric:
        """Held-out loss of the model that it was compared with."""
        return self.total.get("loss_baseline", _NOTHING)

    @property
    def delta(self) -> Metric:
        """Mean of the paired differences."""
        return self.total.get("loss_delta", _NOTHING)

    @property
    def change(self) -> float:
        """The mean difference in percent of the baseline's loss."""
        scale = self.loss_baseline.value
        return 100 * self.delta.value / scale if scale else math.nan


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A validation prompt and its pictures; `compared` if there is an earlier model."""

    text: str
    base: np.ndarray
    compared: np.ndarray | None
    candidate: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Shown:
    """One of the examples with the highest or lowest loss."""

    scored: examples.Scored
    caption: str
    picture: str
    noisy: str
    restored: str
    timestep: int


class Executor(base_executor.BaseExecutor):
    """Writes the report."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `EvaluationReport`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        folder = artifact_utils.get_single_uri(output_dict["report"])
        fileio.makedirs(folder)
        run = self._context.pipeline_run_id if self._context else None
        found = _findings(input_dict, run)
        _write(folder, SUMMARY_NAME, _summary(found))
        _write(folder, LOSS_CURVE_NAME, _loss_curve(found))
        # The pictures of the starting model already exist.
        compared = None if _is_start(found.manifest, input_dict) else _compared(input_dict)
        prompts = list(_prompts(found, compared))
        _write(folder, BEFORE_AFTER_NAME, _before_after(found, prompts))
        worst, best = _extremes(input_dict, found, exec_properties["base_weights"])
        _write(folder, PAGE_NAME, _page(found, prompts, worst, best))
        logger.info("The page about the model: %s", os.path.join(folder, PAGE_NAME))


def _findings(
    input_dict: Mapping[str, list[types.Artifact]], pipeline_run: str | None
) -> _Findings:
    model, scores, blessing = (
        artifact_utils.get_single_instance(input_dict[name])
        for name in ("model", "scores", "blessing")
    )
    run = artifact_utils.get_single_uri(input_dict["model_run"])
    serving = path_utils.serving_model_path(model.uri)
    validation = os.path.join(run, "validation")
    history = _read(os.path.join(run, "history.jsonl")).splitlines()
    evaluation = artifact_utils.get_single_uri(input_dict["evaluation"])
    metrics = read_metrics(evaluation)
    manifest = ModelManifest.read(serving)
    dataset = artifact_utils.get_single_instance(input_dict["examples"])
    return _Findings(
        model=model.uri,
        serving=serving,
        manifest=manifest,
        history=[json.loads(line) for line in history],
        evaluations=[(e.step, e.loss) for e in read_evaluations(run)],
        validation=validation,
        sampling={
            "sampler": "ddim",  # for a model of a former version, which does not record it
            **json.loads(_read(os.path.join(validation, "prompts.json"))),
        },
        baseline=scores.get_string_custom_property("baseline"),
        before=_before(manifest, input_dict),
        blessed=model_utils.is_model_blessed(blessing),
        verdict=blessing.get_string_custom_property(VERDICT),
        reasons=blessing.get_string_custom_property(REASONS).splitlines(),
        metrics=metrics,
        num_examples=scores.get_int_custom_property("num_examples"),
        num_sampled=scores.get_int_custom_property("num_sampled"),
        num_pictures=scores.get_int_custom_property("num_pictures"),
        num_choosing=scores.get_int_custom_property("num_choosing"),
        num_trained_on=scores.get_int_custom_property("num_trained_on_before"),
        num_strata=scores.get_int_custom_property("num_strata"),
        asked=thresholds(evaluation, metrics),
        origin=_origin(
            dataset, artifact_utils.get_single_instance(input_dict["latents"]), pipeline_run
        ),
        remembered=remembered(scores, dataset, metrics.get(ALL, {}), manifest),
        of_class=_of_class(scores, metrics.get(ALL, {}).get(CLASS_DISTANCE, _NOTHING)),
    )


def _of_class(scores: types.Artifact, distance: Metric) -> str:
    """How far pictures of a subject's class have moved, in words; "" if none were drawn."""
    count = scores.get_int_custom_property(NUM_CLASS_PICTURES)
    if not count:
        return ""
    caption = scores.get_string_custom_property(CLASS_CAPTION)
    drawn = (
        f"{count:,} pictures of {caption!r} were drawn from the noise the base weights drew from"
    )
    if not math.isfinite(distance.value):
        return f"{drawn}; it is unknown how far they have moved."
    return (
        f"{drawn}. They have moved by {distance.value:.2f} (95 % interval {distance.lower:.2f} to "
        f"{distance.upper:.2f}): 0 means not at all, 1 as far as two pictures of the base weights "
        "are apart, in colours, contrasts and layout."
    )


def _before(manifest: ModelManifest, input_dict: Mapping[str, list[types.Artifact]]) -> str:
    """The model that a training started from, in words."""
    if not manifest.started_from:
        return BASE_WEIGHTS_LABEL
    if _is_start(manifest, input_dict):
        return f"started from, model {input_dict['baseline_model'][0].id}"
    return f"started from, of training {manifest.started_from['training_id']}"


def _is_start(manifest: ModelManifest, input_dict: Mapping[str, list[types.Artifact]]) -> bool:
    """Whether a model is compared with the model that its training started from."""
    compared = _compared(input_dict)
    return bool(
        compared
        and manifest.started_from
        and ModelManifest.read(compared).training_id == manifest.started_from["training_id"]
    )


def _origin(dataset: types.Artifact, latents: types.Artifact, run: str | None) -> dict[str, str]:
    now = datetime.datetime.now(datetime.timezone.utc)
    revision, train, held_out = (
        dataset.get_string_custom_property("dataset_revision"),
        dataset.get_int_custom_property("num_train"),
        dataset.get_int_custom_property("num_eval"),
    )
    taken, encoded = (
        latents.get_int_custom_property(f"pictures_{what}") for what in ("taken_over", "encoded")
    )
    origin = {
        "Run that judged it": run or "",
        "Judged at": now.strftime("%Y-%m-%d %H:%M UTC"),
        "Dataset": dataset.get_string_custom_property("dataset"),
        "Its revision": revision,
        "Its examples": f"{train:,} to train on, {held_out:,} held out" if train else "",
        "Their pictures": f"{encoded:,} encoded, {taken:,} taken over" if taken else "",
    }
    return {name: value for name, value in origin.items() if value}


def _summary(found: _Findings) -> bytes:
    by_size = _by(found.metrics, PICTURE_SIZE, "pixels")
    summary = {
        **{name: metric.value for name, metric in found.total.items()},
        "loss": found.loss.value,
        "loss_baseline": found.loss_baseline.value,
        "loss_delta": found.delta.value,
        "loss_delta_lower": found.delta.lower,
        "loss_delta_upper": found.delta.upper,
        "loss_change_percent": found.change,
        "baseline": found.baseline,
        **({"started_from": found.before} if found.manifest.started_from else {}),
        "blessed": found.blessed,
        "verdict": found.verdict,
        "reasons": found.reasons,
        "num_examples": found.num_examples,
        "num_pictures": found.num_pictures,
        "num_choosing": found.num_choosing,
        **({"kept": found.manifest.kept} if found.manifest.kept else {}),
        **({"remembered": found.remembered.summary()} if found.remembered else {}),
        "by_timestep": _by(found.metrics, STRATUM, "timesteps"),
        "by_caption_length": _by(found.metrics, CAPTION_BUCKET, "tokens"),
        **({"by_picture_size": by_size} if by_size else {}),
        "model": found.model,
        "preset": found.manifest.preset,
        "image_size": found.manifest.image_size,
        **{name: found.manifest.training.get(name) for name in _SUMMARIZED_TRAINING},
        "images_per_second": found.manifest.images_per_second,
        "training_seconds": found.manifest.training_seconds,
        "wall_time_seconds": found.manifest.wall_time_seconds,
    }
    return json.dumps(_jsonable(summary), indent=2, allow_nan=False).encode()


def _loss_curve(found: _Findings) -> bytes:
    return charts.loss_curve(
        found.history,
        found.loss.value,
        found.loss_baseline.value,
        found.baseline,
        evaluations=found.evaluations,
        kept=found.manifest.kept.get("step"),
    )


def _before_after(found: _Findings, prompts: Sequence[_Prompt]) -> bytes:
    manifest, sampling = found.manifest, found.sampling
    sheet = before_after(
        [Pair(prompt.text, prompt.base, prompt.candidate) for prompt in prompts],
        "Before and after fine-tuning",
        f"Held-out loss {found.loss_baseline.value:.4f} ({found.baseline}) to "
        f"{found.loss.value:.4f} ({found.change:+.1f} %), "
        f"{found.said.lower()}.  "
        f"{manifest.training.get('steps')} steps of {manifest.training.get('batch_size')} "
        f"pictures, preset {manifest.preset}.  {sampling['num_steps']} sampling steps of "
        f"{sampling['sampler']}, guidance {sampling['guidance_scale']:g}, same noise in both "
        "pictures of a pair.",
        before=found.before,
    )
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()


def _page(
    found: _Findings,
    prompts: Sequence[_Prompt],
    worst: Sequence[_Shown],
    best: Sequence[_Shown],
) -> bytes:
    strata = of_feature(found.metrics, STRATUM)
    page = render(
        __package__,
        _TEMPLATE_NAME,
        found=found,
        baseline=found.baseline,
        total=found.total,
        measures=[
            measure
            for measure in MEASURES
            if math.isfinite(found.total.get(measure.name, _NOTHING).value)
        ],
        prompts=[_as_sources(prompt) for prompt in prompts],
        strata=strata,
        lengths=of_feature(found.metrics, CAPTION_BUCKET),
        sizes=_by_shape(of_feature(found.metrics, PICTURE_SIZE)),
        charts=_charts(strata),
        curve=charts.curve(
            [record["step"] for record in found.history],
            [record["loss"] for record in found.history],
            {"baseline": found.loss_baseline.value, "candidate": found.loss.value},
            "Training loss and held-out loss over the steps",
            evaluations=found.evaluations,
            kept=found.manifest.kept.get("step"),
        ),
        worst=worst,
        best=best,
        remembered=found.remembered,
        nearest=[
            (shown, _source(shown.drawn), _source(shown.trained_on))
            for shown in (found.remembered.pairs if found.remembered else ())
        ],
        facts={**found.origin, **_facts(found.manifest)},
        release_place=Markup(RELEASE_PLACE),
        thresholds=found.asked,
        finite=math.isfinite,
    )
    return page.encode()


def _by_shape(sizes: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The sizes from the tallest to the widest."""

    def aspect(name: str) -> float:
        width, height = map(int, name.split(" x "))
        return width / height

    return {name: sizes[name] for name in sorted(sizes, key=aspect)}


def _facts(manifest: ModelManifest) -> dict[str, Any]:
    training = manifest.training.get
    facts = {
        "Preset": manifest.preset,
        "Picture size, pixels": manifest.image_size,
        "Predicts": manifest.prediction,
        "Pure noise at the last timestep": "yes" if manifest.zero_terminal_snr else None,
        "Steps": training("steps"),
        "Batch size": training("batch_size"),
        "Learning rate": training("learning_rate"),
        "Kept step": f"{kept['step']} of {kept['steps_done']}: {kept['why']}"
        if (kept := manifest.kept)
        else None,
        "Decay of the average of the weights": training("ema_decay"),
        "Seed": training("seed"),
        "Class pictures": f"{sum(prior['counts'].values()):,}, with a loss weight of "
        f"{prior['weight']:g}"
        if (prior := manifest.prior)
        else None,
        "Started from": f"the model of training {manifest.started_from['training_id']}"
        if manifest.started_from
        else None,
        "Training, seconds": manifest.training_seconds,
        "Of which for held-out losses": kept.get("seconds"),
        "Code": manifest.code_version,
    }
    return {name: value for name, value in facts.items() if value is not None}


def draw_prompts(serving: str, sampling: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Draws every validation prompt with exported models, from the same noise as the Trainer.

    Args:
        serving: Folder with the three SavedModels.
        sampling: `prompts`, `seed`, `sampler`, `num_steps` and `guidance_scale`. Models of former
            versions have no choice of sampler: they draw with 25 steps of `ddim`, as they
            recommended.

    Yields:
        uint8 [H, W, 3], for prompt `i` from the seed `seed + i`, as `serving.generate` draws it.
    """
    text_encoder, diffusion_model, decoder = (
        tf.saved_model.load(os.path.join(serving, name))
        for name in ("text_encoder", "diffusion_model", "decoder")
    )
    knows_samplers = "sample" in diffusion_model.signatures
    draw = diffusion_model.signatures["sample" if knows_samplers else "serving_default"]
    num_steps, how = _FORMER_STEPS, {}
    if knows_samplers:
        num_steps, how = sampling["num_steps"], {"sampler": tf.constant(sampling["sampler"])}
    prompts = sampling["prompts"]
    with WorkProgress(Work("drawing", len(prompts), "pictures")) as progress:
        for index, prompt in enumerate(prompts):
            contexts = text_encoder.signatures["text"](
                prompt=tf.constant([prompt]), negative_prompt=tf.constant([""])
            )
            latent = draw(
                context=contexts["context"],
                unconditional_context=contexts["unconditional_context"],
                num_steps=tf.constant(num_steps, tf.int32),
                guidance_scale=tf.constant(sampling["guidance_scale"], tf.float32),
                seed=tf.constant([sampling["seed"] + index, 0], tf.int32),
                **how,
            )["latent"]
            images = decoder.signatures["serving_default"](latent=latent)["generated_images"]
            yield images.numpy()[0]
            progress.update("drawing")


def _compared(input_dict: Mapping[str, list[types.Artifact]]) -> str | None:
    models = input_dict.get("baseline_model", [])
    return path_utils.serving_model_path(models[0].uri) if models else None


def _prompts(found: _Findings, compared: str | None) -> Iterator[_Prompt]:
    prompts = found.sampling["prompts"]
    # One model after the other, so that only one of them is in memory.
    earlier = list(draw_prompts(compared, found.sampling)) if compared else [None] * len(prompts)
    drawn = zip(prompts, earlier, draw_prompts(found.serving, found.sampling), strict=True)
    for index, (prompt, before, after) in enumerate(drawn):
        path = os.path.join(found.validation, _BASE_PICTURES, f"{index:02d}.png")
        with Image.open(io.BytesIO(_read(path))) as image:
            yield _Prompt(prompt, np.asarray(image.convert("RGB")), before, after)


def _as_sources(prompt: _Prompt) -> dict[str, str]:
    pictures = {"base": prompt.base, "compared": prompt.compared, "candidate": prompt.candidate}
    return {
        "text": prompt.text,
        **{name: _source(picture) for name, picture in pictures.items() if picture is not None},
    }


def _source(picture: np.ndarray | Image.Image) -> str:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if max(image.size) <= _KEPT_SIZE:
        return data_uri(image, "PNG")
    image.thumbnail((_KEPT_SIZE, _KEPT_SIZE), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG", quality=_JPEG_QUALITY)


def _charts(strata: Mapping[str, Metrics]) -> dict[str, Any]:
    def middle(name: str) -> float:
        first, _, last = name.partition("-")
        return (int(first) + int(last) + 1) / 2

    def of(name: str) -> list[tuple[float, Metric]]:
        return [(middle(key), found[name]) for key, found in strata.items()]

    def share(found: Metrics) -> Metric:
        scale = found["loss_baseline"].value or math.nan
        delta = found["loss_delta"]
        return Metric(delta.value / scale, delta.lower / scale, delta.upper / scale)

    changes = [(middle(key), share(found)) for key, found in strata.items()]
    return {
        "losses": charts.intervals(
            {"baseline": of("loss_baseline"), "candidate": of("loss")},
            _LAST_TIMESTEP,
            "Held-out losses by timestep, with intervals",
        ),
        "changes": charts.intervals(
            {"candidate": changes},
            _LAST_TIMESTEP,
            "Change in loss by timestep, with intervals",
            zero_line=True,
            as_percent=True,
        ),
    }


def _extremes(
    input_dict: Mapping[str, list[types.Artifact]], found: _Findings, base_weights: str
) -> tuple[list[_Shown], list[_Shown]]:
    # Imports Keras.
    from storage import images
    from trainer.data.latents import size_of
    from trainer.presets import get_preset
    from trainer.weights.base_model import BaseModel

    scores = artifact_utils.get_single_instance(input_dict["scores"])
    base_model = BaseModel.locate(
        get_preset(found.manifest.preset), found.manifest.image_size, base_weights
    )
    num_strata, seed = found.num_strata, scores.get_int_custom_property("seed")
    extremes = examples.extremes(_files(scores), _NUM_EXTREMES)
    scored = {one.example_id: one for one in (*extremes.worst, *extremes.best)}
    ids = frozenset(scored)
    rows, latents = (
        examples.records_of(_files(artifact_utils.get_single_instance(input_dict[name])), ids)
        for name in ("examples", "latents")
    )
    preset, size = base_model.preset, base_model.image_size
    shapes = [preset.latent_shape(size_of(latents[name], size)) for name in scored]
    draws = [
        draw_noise(name, num_strata // 2, num_strata, seed, shape)
        for name, shape in zip(scored, shapes, strict=True)
    ]
    restored = examples.reconstruct(
        found.serving, base_model, [latents[name] for name in scored], draws
    )
    shown = {}
    for (name, one), made in zip(scored.items(), restored, strict=True):
        features = tf.train.Example.FromString(rows[name]).features.feature
        picture = images.decode_image(features["image/encoded"].bytes_list.value[0])
        shown[name] = _Shown(
            scored=one,
            caption=features["caption"].bytes_list.value[0].decode("utf-8", "replace"),
            picture=_source(picture),
            noisy=_source(made.noisy),
            restored=_source(made.restored),
            timestep=made.timestep,
        )
    worst, best = (
        [shown[one.example_id] for one in some] for some in (extremes.worst, extremes.best)
    )
    return worst, best


def _by(metrics: Mapping[Slice, Metrics], feature: str, name: str) -> list[dict[str, Any]]:
    return [
        {
            name: value,
            "num_rows": int(found["example_count"].value),
            **{
                key: found[key].value
                for key in ("loss", "loss_baseline", "loss_delta", "loss_increase_upper")
            },
            "loss_delta_lower": found["loss_delta"].lower,
            "loss_delta_upper": found["loss_delta"].upper,
        }
        for value, found in of_feature(dict(metrics), feature).items()
    ]


def _files(examples_artifact: types.Artifact) -> Sequence[str]:
    folder = artifact_utils.get_split_uri([examples_artifact], _SPLIT)
    return sorted(map(str, fileio.glob(io_utils.all_files_pattern(folder))))


def _read(path: str) -> bytes:
    with fileio.open(path, "rb") as f:
        contents: bytes = f.read()
    return contents


def _write(folder: str, name: str, contents: bytes) -> None:
    with fileio.open(os.path.join(folder, name), "wb") as f:
        f.write(contents)


def _jsonable(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value
