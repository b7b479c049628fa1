"""Where a run writes, and where the files of this repository are in the image."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from pipeline.config import REPO_ROOT, ConfigError, RunConfig
from pipeline.config.schema import names_place

CODE = ("components", "data", "pipeline", "serving", "storage", "trainer")
"""Folders that the Dockerfile copies."""

ENVIRONMENT = {
    # If this is unset, importing TFX switches Keras to version 2.
    "TF_USE_LEGACY_KERAS": "0",
    # As in local runs, so that equal seeds give equal weights.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Variables that the Dockerfile sets."""

_IN_IMAGE = ("data", "trainer")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a run writes.

    Attributes:
        root: Folder for the steps' outputs and checkpoints.
        serving_dir: Folder that models are pushed to.
    """

    root: str
    serving_dir: str

    @classmethod
    def below(cls, root: str, serving_dir: str | None = None) -> Places:
        """Everything below `root`, except a serving directory that is given."""
        root = root.rstrip("/")
        return cls(root, (serving_dir or f"{root}/serving_model").rstrip("/"))


def in_image(config: RunConfig, *, others: bool = False) -> RunConfig:
    """The configuration, with paths in this repository changed to those in the image.

    Args:
        config: All settings, with the dataset resolved.
        others: Whether to keep other paths of this machine.

    Raises:
        ConfigError: A setting names another path of this machine, which Vertex cannot read.
    """
    dataset, model = config.dataset, config.model
    dataset = dataclasses.replace(
        dataset,
        path=_in_image("dataset.path", dataset.path, others),
        schema=dataset.schema and _in_image("dataset.schema", dataset.schema, others),
        withdrawn=dataset.withdrawn and _in_image("dataset.withdrawn", dataset.withdrawn, others),
    )
    if model.base_weights not in ("default", "random"):
        base_weights = _in_image("model.base_weights", model.base_weights, others)
        model = dataclasses.replace(model, base_weights=base_weights)
    if names_place(model.start_from):
        start_from = _in_image("model.start_from", model.start_from, others)
        model = dataclasses.replace(model, start_from=start_from)
    evaluation = config.evaluation
    if evaluation.clip_model is not None:
        clip = _in_image("evaluation.clip_model", evaluation.clip_model, others)
        evaluation = dataclasses.replace(evaluation, clip_model=clip)
    prior = config.prior
    if prior.folder is not None:
        folder = _in_image("prior.folder", prior.folder, others)
        prior = dataclasses.replace(prior, folder=folder)
    serving = config.serving
    if serving.sign_key is not None:
        key = _in_image("serving.sign_key", serving.sign_key, others)
        serving = dataclasses.replace(serving, sign_key=key)
    if serving.c2pa_certificate is not None:
        chain = _in_image("serving.c2pa_certificate", serving.c2pa_certificate, others)
        serving = dataclasses.replace(serving, c2pa_certificate=chain)
    return dataclasses.replace(
        config,
        dataset=dataset,
        model=model,
        evaluation=evaluation,
        prior=prior,
        serving=serving,
    )


def _in_image(key: str, path: str, others: bool) -> str:
    if "://" in path:
        return path
    relative = os.path.relpath(path, REPO_ROOT)
    if Path(relative).parts[0] in _IN_IMAGE:
        return relative
    if others:
        return path
    raise ConfigError(
        f"{key} = {path!r} is on this machine, where Vertex cannot read it: copy it to a bucket "
        f"(gcloud storage cp -r {path} gs://BUCKET/) and give its address there"
    )


def stage_code(folder: Path) -> None:
    """Copies the code into `folder`, laid out as in the image."""
    for name in CODE:
        shutil.copytree(
            REPO_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
