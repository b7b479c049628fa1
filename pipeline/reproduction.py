"""Makes a release again: what was recorded, what is missing here, how far the two are apart."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.code_version import code_version
from pipeline import lineage
from pipeline.config import (
    ConfigError,
    RunConfig,
    load_config,
    resolve_base_weights,
    resolve_dataset,
)
from pipeline.config.schema import BASE, OUTPUT, SECTIONS, keys, names_place
from pipeline.lineage import LineageError, files, scores
from pipeline.lineage.tracing import MADE, Trace
from serving.releases import EXPORT_NAME, Release, find_release
from storage import filesystem
from storage.commands import CHECKOUT, shown_path
from storage.hashing import sha256_hex
from storage.machine import processor
from storage.made_with import git_changed, git_commit, versions
from storage.model_manifest import ModelManifest
from storage.user_errors import UserError

_SETTINGS_NAME = "reproduced.json"
_SCORER, _EXAMPLES = "LossScorer", "Examples"
# The code that decides weights and losses, by the step that runs it.
_CODE: Mapping[str, tuple[str, ...]] = {
    "CaptionExampleGen": ("components.caption_example_gen.executor",),
    "ClassPictures": ("components.class_pictures.executor",),
    "LatentGen": ("components.latent_gen.executor",),
    "ClassLatentGen": ("components.latent_gen.executor",),
    "Tuner": ("components.diffusion_tuner.executor",),
    "Trainer": ("trainer.run_fn", "components.diffusion_trainer.executor"),
    _SCORER: ("components.loss_scorer.executor",),
}
_VARIABLE = re.compile(r".*/\.ATTRIBUTES/VARIABLE_VALUE")


class ReproductionError(UserError):
    """A release cannot be made again, or not be compared; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What is recorded about how a release was made.

    Attributes:
        release: The release, in its serving directory.
        manifest: The manifest of its model.
        settings: The settings of its run.
        fingerprint: The fingerprint of its dataset.
        code: The hash of the code that each step ran, by step.
        started_from: Folder of the model that its training started from; "" for base weights.
        losses: Loss of each held-out example at each timestep; `None` if they no longer exist here.
    """

    release: Release
    manifest: ModelManifest
    settings: Mapping[str, Any]
    fingerprint: str
    code: Mapping[str, str]
    started_from: str
    losses: Mapping[tuple[str, int], float] | None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a release was made from, compared with what is here.

    Attributes:
        name: What was compared.
        same: Whether it is the same; `None` if unknown.
        said: The result in words.
        command: The command that restores it if it differs; "" if there is none.
        stops: Whether this keeps the run from starting.
    """

    name: str
    same: bool | None
    said: str
    command: str = ""
    stops: bool = False


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far two networks are apart.

    Attributes:
        network: Name of the network.
        digests: SHA-256 (hex) of the values: the release's, then the other's.
        tensors: Number of tensors.
        equal: How many of them are the same, bit for bit.
        most: The largest absolute difference.
        relative: L2 norm of the differences, divided by that of the release's weights.
    """

    network: str
    digests: tuple[str, str]
    tensors: int
    equal: int
    most: float
    relative: float

    @property
    def same(self) -> bool:
        """Whether all tensors are the same, bit for bit."""
        return self.equal == self.tensors


@dataclasses.dataclass(frozen=True)
class Losses:
    """Held-out losses of two models on the same examples, timesteps and noise.

    Attributes:
        pairs: Number of pairs.
        first: Mean loss of the release.
        second: Mean loss of the other.
        most: The largest absolute difference of a pair.
    """

    pairs: int
    first: float
    second: float
    most: float


def find(
    location: lineage.Location, text: str, serving_dir: str | None, config: str | None
) -> Recorded:
    """Finds what a store and a serving directory record about a release.

    Args:
        location: The store.
        text: Such as `release:3`.
        serving_dir: Where the release is; `None`: where it was pushed to.
        config: File with the settings of its run; `None`: the settings that the push recorded.

    Raises:
        LineageError: There is no such release in the store.
        ReproductionError: Something about it was not recorded.
        ServingError: There is no such release in the serving directory.
    """
    with location.open() as store:
        trace = lineage.trace(store, text, location.roots)
    if trace.release is None:
        raise ReproductionError(f"{text} is not a release: name one, such as release:1")
    where = serving_dir or str(trace.subject.properties["pushed_destination"])
    release = find_release(where, int(trace.release))
    release.check_complete()
    manifest = ModelManifest.of_release(release.facts)
    if manifest is None:
        raise ReproductionError(
            f"release {release.version} does not say how it was made: it was pushed by a version "
            "of this project that did not record that"
        )
    made = [step.execution for step in trace.steps if step.role == MADE]
    if config is not None:
        settings = _read_settings(config)
    else:
        recorded = next((e.recorded for e in reversed(made) if e.recorded), "")
        if not recorded:
            raise ReproductionError(
                f"the push of release {release.version} recorded no settings, because it was done "
                "by a former version: give the settings of its run with --config, such as "
                "config.yaml in its output folder"
            )
        settings = json.loads(recorded)
    by_node = {e.node: e for e in made}
    started = [f.artifact_id for f in trace.facts if f.name == "started_from_model"]
    return Recorded(
        release=release,
        manifest=manifest,
        settings=settings,
        fingerprint=str(next((e.settings["dataset_fingerprint"] for e in made if _reads(e)), "")),
        code={
            node: str(version)
            for node, names in _CODE.items()
            if node in by_node
            for name, version in by_node[node].settings.items()
            if name in ("code_version", "custom_config.code_version")
        },
        started_from=trace.artifacts[started[0]].uri if started and started[0] else "",
        losses=_losses(trace, location.roots),
    )


def configured(recorded: Recorded, into: str, given: Mapping[str, str]) -> RunConfig:
    """The settings of the run that makes a release again; also written into its folder.

    Args:
        recorded: The release.
        into: Folder that the run writes everything to.
        given: Settings that replace recorded ones, such as `dataset.path`.

    Raises:
        ConfigError: A setting is impossible, such as a place that no longer exists.
        ReproductionError: This version of the project does not have all of the settings.
    """
    tree = json.loads(json.dumps(recorded.settings))
    # Where the run wrote, and what it signed with, do not affect the result.
    for name in (OUTPUT, "vertex"):
        tree.pop(name, None)
    for name in ("sign_key", "sign_key_env", "c2pa_certificate", "c2pa_key_env"):
        tree["serving"].pop(name, None)
    start_from = tree["model"]["start_from"]
    if start_from != BASE and not names_place(start_from):
        tree["model"]["start_from"] = recorded.started_from or BASE
    for key, value in given.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    given_keys = {f"{section}.{name}" for section in SECTIONS for name in tree.get(section, {})}
    if unknown := sorted(given_keys - set(keys())):
        commit = recorded.manifest.git_commit
        raise ReproductionError(
            f"the release was made with settings that this version of the project does not have: "
            f"{', '.join(unknown)}{f': git checkout {commit}' if commit else ''}"
        )
    os.makedirs(into, exist_ok=True)
    path = settings_file(into)
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False), encoding="utf-8")
    try:
        return load_config(str(path), {OUTPUT: ("--into", into)})
    except ConfigError as error:
        raise ConfigError(
            f"{error}; say with --dataset and --base-weights where data and weights are now"
        ) from None


def settings_file(into: str) -> Path:
    """The file that `configured` writes the settings to."""
    return Path(into, _SETTINGS_NAME)


def look(recorded: Recorded, config: RunConfig) -> list[Finding]:
    """Compares what a release was made from with what is here, before anything is run."""
    manifest = recorded.manifest
    return [
        _data(recorded, config),
        _weights(recorded, config),
        _code(recorded),
        _packages(manifest),
        _processor(manifest),
    ]


def apart(recorded: Recorded, model: str) -> Iterator[Distance]:
    """How far the networks of a release and of a model are apart.

    Args:
        recorded: The release.
        model: Folder of the model's artifact.

    Raises:
        ReproductionError: A network of the model has different tensors, or is missing.
    """
    for network in recorded.release.networks:
        first = _values(recorded.release.model_folder(network))
        second = _values(filesystem.join(model, EXPORT_NAME, network))
        if {n: v.shape for n, v in first.items()} != {n: v.shape for n, v in second.items()}:
            raise ReproductionError(
                f"the {network} made again has different tensors than the one of the release: they "
                "belong to different networks and cannot be compared"
            )
        yield _distance(network, first, second)


def paired(
    recorded: Mapping[tuple[str, int], float] | None,
    made: Mapping[tuple[str, int], float] | None,
) -> Losses | None:
    """Compares losses; `None` if either is missing or they have no pairs in common."""
    common = sorted((recorded or {}).keys() & (made or {}).keys())
    if recorded is None or made is None or not common:
        return None
    first = np.array([recorded[key] for key in common])
    second = np.array([made[key] for key in common])
    return Losses(
        len(common),
        float(first.mean()),
        float(second.mean()),
        float(np.abs(first - second).max()),
    )


def made_in(output: str) -> tuple[str, Mapping[tuple[str, int], float] | None]:
    """The model that the latest training in an output folder made, and its held-out losses.

    Raises:
        ReproductionError: There is no such model.
    """
    location = lineage.locate(output)
    with location.open() as store:
        models = [
            store.artifacts([i])[0]
            for i in store.artifacts_of_type("Model")
            if (maker := store.graph.maker(i)) is not None and store.node_of.get(maker) == "Trainer"
        ]
        if not models:
            raise ReproductionError(f"no model was made in {output}")
        model = max(models, key=lambda artifact: artifact.id)
        scored = [
            link.execution_id
            for link in store.links(artifacts=[model.id])
            if not link.output and store.node_of.get(link.execution_id) == _SCORER
        ]
        for artifact in store.artifacts(store.graph.outputs(scored[-1])) if scored else ():
            if artifact.type.endswith(_EXAMPLES):
                folder = files.folder_of(artifact, location.roots)
                return model.uri, scores.read_losses(folder)
    return model.uri, None


def _reads(execution: lineage.Execution) -> bool:
    return execution.node == "CaptionExampleGen" and "dataset_fingerprint" in execution.settings


def _read_settings(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ReproductionError(f"--config {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not {"model", "serving", "dataset"} <= content.keys():
        raise ReproductionError(
            f"--config {path} does not have all settings: give the config.yaml that a run leaves "
            "in its output folder"
        )
    return content


def _losses(trace: Trace, roots: Sequence[str]) -> Mapping[tuple[str, int], float] | None:
    for step in reversed(trace.steps):
        if step.execution.node != _SCORER:
            continue
        for link in step.links:
            artifact = trace.artifacts[link.artifact_id]
            if link.output and artifact.type.endswith(_EXAMPLES) and not artifact.removed:
                try:
                    return scores.read_losses(files.folder_of(artifact, roots))
                except LineageError:
                    return None
    return None


def _data(recorded: Recorded, config: RunConfig) -> Finding:
    place = shown_path(config.dataset.path)
    brings = "--dataset FOLDER, with the data as it was"
    commit = recorded.manifest.git_commit
    relative = os.path.relpath(config.dataset.path, CHECKOUT)
    if commit and "://" not in config.dataset.path and not relative.startswith(".."):
        brings = f"git checkout {commit} -- {relative}"
    try:
        _, fingerprint = resolve_dataset(config)
    except ConfigError as error:
        return Finding("data", False, str(error), brings, stops=True)
    if not recorded.fingerprint:
        return Finding("data", None, f"no fingerprint was recorded; here {fingerprint[:12]}")
    if fingerprint == recorded.fingerprint:
        return Finding("data", True, f"{place}, fingerprint {fingerprint[:12]}")
    said = f"{place} has changed: fingerprint {fingerprint[:12]}, then {recorded.fingerprint[:12]}"
    return Finding("data", False, said, brings, stops=True)


def _weights(recorded: Recorded, config: RunConfig) -> Finding:
    brings = "--base-weights FOLDER, with the weights that it began with"
    if names_place(config.model.start_from):
        place = config.model.start_from
        if not filesystem.is_folder(place):
            return Finding("base weights", False, f"there is no model in {place}", brings, True)
    try:
        _, base_model = resolve_base_weights(config)
    except ConfigError as error:
        return Finding("base weights", False, str(error), brings, stops=True)
    if not recorded.manifest.base_weights:
        return Finding("base weights", None, "no hashes were recorded")
    other = [
        network
        for network, digest in recorded.manifest.base_weights.items()
        if base_model.hash([network]) != digest
    ]
    shown = shown_path(config.model.base_weights)
    if other:
        said = f"{shown} has different weights: {', '.join(other)}"
        return Finding("base weights", False, said, brings, stops=True)
    return Finding("base weights", True, shown)


def _code(recorded: Recorded) -> Finding:
    there = recorded.manifest.git_commit
    other = [step for step, then in recorded.code.items() if code_version(*_CODE[step]) != then]
    at = f"commit {there[:12]}" if there else "no commit recorded"
    if recorded.manifest.git_changed:
        at += " with uncommitted changes"
    if not recorded.code:
        return Finding("code", None, f"no hashes were recorded; {at}")
    if not other:
        return Finding("code", True, f"{at}; the code of all steps has the same hash")
    here = git_commit()
    command = f"git checkout {there}" if there else ""
    if there and there == here:
        # The commit is checked out, so one of the two had uncommitted changes.
        command = "git stash" if git_changed() else ""
    return Finding("code", False, f"{at}; other code in {', '.join(other)}", command, stops=True)


def _packages(manifest: ModelManifest) -> Finding:
    then, now = dict(manifest.versions), versions()
    if not then:
        return Finding("packages", None, "no versions were recorded")
    other = [
        f"{name} {then[name]} (here {now.get(name)})"
        for name in sorted(then)
        if then[name] != now.get(name)
    ]
    if not other:
        return Finding("packages", True, f"Python {now['python']}, TensorFlow {now['tensorflow']}")
    stack = "requirements.lock"
    if then.get("tfx", "").startswith("1.16"):
        stack = "requirements-old-stack.lock"
    python = ".".join(then["python"].split(".")[:2])
    at = f"git checkout {manifest.git_commit} -- {stack} && " if manifest.git_commit else ""
    return Finding("packages", False, ", ".join(other), f"{at}PYTHON=python{python} make setup")


def _processor(manifest: ModelManifest) -> Finding:
    if manifest.processor is None:
        return Finding("processor", None, "none was recorded")
    here = processor()
    if manifest.processor == here:
        return Finding("processor", True, here)
    if gpus := manifest.processor.removeprefix(f"{here}, ").removeprefix(manifest.processor):
        # Finding out whether they are here would take loading TensorFlow.
        return Finding("processor", None, f"{here}; then with {gpus}")
    return Finding("processor", False, f"{manifest.processor}; here {here}")


def _values(folder: str) -> dict[str, np.ndarray]:
    """The variables of a SavedModel, by name."""
    import tensorflow as tf

    path = filesystem.join(folder, "variables", "variables")
    try:
        stored = tf.compat.v1.train.NewCheckpointReader(path)
        return {
            name: stored.get_tensor(name)
            for name in sorted(stored.get_variable_to_shape_map())
            if _VARIABLE.fullmatch(name)
        }
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise ReproductionError(
            f"{path} is missing or damaged: {str(error).splitlines()[0]}"
        ) from None


def _distance(
    network: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> Distance:
    equal, most, squares, norm = 0, 0.0, 0.0, 0.0
    for name, value in first.items():
        other = second[name]
        if value.tobytes() == other.tobytes() and value.dtype == other.dtype:
            equal += 1
        if value.dtype.kind not in "fiuV" or not value.size:
            continue
        wide = np.asarray(value, np.float64)
        difference = np.asarray(other, np.float64) - wide
        most = max(most, float(np.abs(difference).max()))
        squares += float(np.square(difference).sum())
        norm += float(np.square(wide).sum())
    digests = tuple(sha256_hex(v.tobytes() for v in values.values()) for values in (first, second))
    relative = (squares / norm) ** 0.5 if norm else float(squares > 0)
    return Distance(network, (digests[0], digests[1]), len(first), equal, most, relative)


def run(into: str) -> int:
    """Starts the run in a separate process, on this terminal; returns its exit status."""
    import sys

    command = [sys.executable, str(CHECKOUT / "runner_local.py")]
    return subprocess.call([*command, "--config", str(settings_file(into)), "--output", into])
