"""The work of EvaluationReport."""

from __future__ import annotations

import collections
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.evaluation_report import charts
from components.evaluation_report.pictures import Pair, before_after
from components.tfrecords import read_shard

BEFORE_AFTER_NAME = "before_after.png"
LOSS_CURVE_NAME = "loss_curve.png"
LOSS_BY_TIMESTEP_NAME = "loss_by_timestep.png"
SUMMARY_NAME = "summary.json"

_SPLIT = "eval"
_LOSSES = ("loss", "loss_baseline", "loss_delta")
_BASE_PICTURES = "step_000000"
_FROM_MANIFEST = (
    "preset",
    "image_size",
    "steps",
    "batch_size",
    "learning_rate",
    "seed",
    "images_per_second",
    "training_seconds",
    "wall_time_seconds",
)

logger = logging.getLogger(__name__)


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
        model = artifact_utils.get_single_instance(input_dict["model"])
        run = artifact_utils.get_single_uri(input_dict["model_run"])
        scores = artifact_utils.get_single_instance(input_dict["scores"])
        blessing = artifact_utils.get_single_instance(input_dict["blessing"])
        report = artifact_utils.get_single_instance(output_dict["report"])
        fileio.makedirs(report.uri)

        def write(name: str, contents: bytes) -> None:
            with fileio.open(os.path.join(report.uri, name), "wb") as f:
                f.write(contents)

        serving = path_utils.serving_model_path(model.uri)
        manifest = json.loads(_read(os.path.join(serving, "manifest.json")))
        history = [
            json.loads(line) for line in _read(os.path.join(run, "history.jsonl")).splitlines()
        ]
        buckets = losses_by_timestep(_score_files(scores))
        loss, loss_baseline, loss_delta = (_mean(scores, name) for name in _LOSSES)
        baseline = scores.get_string_custom_property("baseline")
        blessed = model_utils.is_model_blessed(blessing)
        change = 100 * loss_delta / loss_baseline if loss_baseline else math.nan
        summary = {
            "loss": loss,
            "loss_baseline": loss_baseline,
            "loss_delta": loss_delta,
            "loss_change_percent": change,
            "baseline": baseline,
            "blessed": blessed,
            "num_examples": scores.get_int_custom_property("num_examples"),
            "by_timestep": buckets,
            "model": model.uri,
            **{name: manifest.get(name) for name in _FROM_MANIFEST},
        }
        write(SUMMARY_NAME, json.dumps(_jsonable(summary), indent=2, allow_nan=False).encode())
        write(LOSS_CURVE_NAME, charts.loss_curve(history, loss, loss_baseline, baseline))
        write(LOSS_BY_TIMESTEP_NAME, charts.loss_by_timestep(buckets, baseline))

        validation = os.path.join(run, "validation")
        settings = json.loads(_read(os.path.join(validation, "prompts.json")))
        sheet = before_after(
            list(_pairs(serving, validation, settings)),
            "Before and after fine-tuning",
            f"Held-out loss {loss_baseline:.4f} ({baseline}) to {loss:.4f} ({change:+.1f} %), "
            f"{'blessed' if blessed else 'not blessed'}.  {manifest.get('steps')} steps of "
            f"{manifest.get('batch_size')} pictures, preset {manifest.get('preset')}.  "
            f"{settings['num_steps']} sampling steps, guidance {settings['guidance_scale']:g}, "
            "same noise in both pictures of a pair.",
        )
        png = io.BytesIO()
        sheet.save(png, format="PNG")
        write(BEFORE_AFTER_NAME, png.getvalue())
        logger.info("The report is in %s.", report.uri)


def losses_by_timestep(files: Sequence[str]) -> list[dict[str, Any]]:
    """Means of the scores' strata, in the order of their timesteps.

    Returns:
        For each stratum `timesteps` (such as `000-099`), `num_rows`, and the means `loss`,
        `loss_baseline` and `loss_delta`.
    """
    sums: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in files:
        for record in read_shard(path):
            features = tf.train.Example.FromString(record).features.feature
            bucket = sums[features["timestep_bucket"].bytes_list.value[0].decode()]
            bucket["num_rows"] += 1
            for name in _LOSSES:
                bucket[name] += features[name].float_list.value[0]
    return [
        {
            "timesteps": timesteps,
            "num_rows": bucket["num_rows"],
            **{name: bucket[name] / bucket["num_rows"] for name in _LOSSES},
        }
        for timesteps, bucket in sorted(sums.items())
    ]


def draw_prompts(serving: str, settings: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Draws every validation prompt with exported models, from the Trainer's own noise.

    Args:
        serving: Folder with the three SavedModels.
        settings: `prompts`, `seed`, `num_steps` and `guidance_scale`.

    Yields:
        uint8 [H, W, 3], for prompt `i` from the seed `seed + i`, as `serving.generate` draws it.
    """
    text_encoder, diffusion_model, decoder = (
        tf.saved_model.load(os.path.join(serving, name))
        for name in ("text_encoder", "diffusion_model", "decoder")
    )
    for index, prompt in enumerate(settings["prompts"]):
        contexts = text_encoder.signatures["text"](
            prompt=tf.constant([prompt]), negative_prompt=tf.constant([""])
        )
        latent = diffusion_model.signatures["serving_default"](
            context=contexts["context"],
            unconditional_context=contexts["unconditional_context"],
            num_steps=tf.constant(settings["num_steps"], tf.int32),
            guidance_scale=tf.constant(settings["guidance_scale"], tf.float32),
            seed=tf.constant([settings["seed"] + index, 0], tf.int32),
        )["latent"]
        images = decoder.signatures["serving_default"](latent=latent)["generated_images"]
        yield images.numpy()[0]


def _pairs(serving: str, validation: str, settings: Mapping[str, Any]) -> Iterator[Pair]:
    drawn = draw_prompts(serving, settings)
    for index, (prompt, after) in enumerate(zip(settings["prompts"], drawn, strict=True)):
        path = os.path.join(validation, _BASE_PICTURES, f"{index:02d}.png")
        with Image.open(io.BytesIO(_read(path))) as image:
            yield Pair(prompt, np.asarray(image.convert("RGB")), after)


def _mean(scores: types.Artifact, name: str) -> float:
    # LossScorer leaves out what is not a finite number.
    return scores.get_float_custom_property(name) if scores.has_custom_property(name) else math.nan


def _score_files(scores: types.Artifact) -> list[str]:
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([scores], _SPLIT))
    return sorted(map(str, fileio.glob(pattern)))


def _read(path: str) -> bytes:
    with fileio.open(path, "rb") as f:
        contents: bytes = f.read()
    return contents


def _jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value
