"""The releases of a serving directory, for its readers; `__main__.py` is the command.

A version of the three models, or of four if it can draw from pictures, is a release if and only if
`releases/<version>.json` is there. The current release is the highest that `models.config` names;
`rollback` makes another one current.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.errors import ServingError, check_place
from serving.request import DEFAULT_SAMPLER, MAX_STEPS, SAMPLERS
from storage import filesystem
from storage.commands import module_command, place
from storage.model_manifest import MODEL_MANIFEST_NAME
from storage.models_config import CONFIG_NAME, named_versions
from storage.picture_marks import network_digests
from storage.verdict import UNSURE, VERDICT

SERVED_NETWORKS = ("text_encoder", "diffusion_model", "decoder")
"""The three of the four networks that draw pictures; every release has them."""
IMAGE_ENCODER = "image_encoder"
"""The fourth network, of releases that can draw from pictures."""
ALL_NETWORKS = (*SERVED_NETWORKS, IMAGE_ENCODER)
"""The networks that a release can have."""
SINGLE_FILES = "single_files"
"""Folder beside the networks with files for other tools: a model, or adapters, in one file."""
CHECKPOINT_NAME = "model.safetensors"
"""The single file with the whole model."""
FOLDERS = (*ALL_NETWORKS, SINGLE_FILES)
"""The folders that hold a version; not always the last two."""
C2PA = "c2pa"
"""Fact of a release: how its pictures are signed; see `serving.marking.signed_with`."""
RELEASES = "releases"
EXPORT_NAME = "Format-Serving"
"""Folder in a model artifact that TFX puts the SavedModels into."""
ROLLBACK_NAME = "rollback.json"

DEFAULT_SERVING_DIR = "runs/default/serving_model"
FALLBACK_STEPS = 25
FALLBACK_GUIDANCE_SCALE = 7.5
_RELEASE_FILE = re.compile(r"([0-9]+)\.json")


@dataclass(frozen=True)
class Release:
    """One version of the models.

    Attributes:
        serving_dir: The directory that it is in.
        version: The version, the same for all models.
        facts: What the pusher wrote about it.
        num_steps: Sampling steps if a request names none.
        guidance_scale: Guidance scale if a request names none.
        sampler: Sampler if a request names none.
        image_size: Side of the pictures that it was trained on; `None` if the facts do not say.
        size_multiple: Heights and widths must be multiples of it; `None` if the facts do not say.
    """

    serving_dir: str
    version: int
    facts: Mapping[str, Any]
    num_steps: int
    guidance_scale: float
    sampler: str = DEFAULT_SAMPLER
    image_size: int | None = None
    size_multiple: int | None = None

    @property
    def unsure(self) -> bool:
        """Whether it was pushed although it may not be better."""
        return self.facts.get(VERDICT) == UNSURE

    @property
    def networks(self) -> tuple[str, ...]:
        """Its networks: `SERVED_NETWORKS`, and `IMAGE_ENCODER` if it can draw from pictures."""
        return networks_of(self.facts)

    @property
    def marks(self) -> dict[str, Any]:
        """What a picture says about the release that drew it: fields of `Marks`."""
        files, manifest = (self.facts.get(name) or {} for name in ("files", "manifest"))
        digests = network_digests(files)
        return {
            "training_id": manifest.get("training_id"),
            "preset": manifest.get("preset", self.facts.get("preset")),
            "networks": {name: digests[name] for name in ALL_NETWORKS if name in digests},
            "checkpoint_sha256": files.get(f"{SINGLE_FILES}/{self.version}/{CHECKPOINT_NAME}"),
        }

    def check_complete(self) -> None:
        """Raises a `ServingError` if the SavedModel of one of `networks` is not there."""
        for network in self.networks:
            self.model_folder(network)

    def model_folder(self, network: str) -> str:
        """The SavedModel of one of `networks`.

        Raises:
            ServingError: It is not there.
        """
        folder = filesystem.join(self.serving_dir, network, str(self.version))
        if not filesystem.is_file(filesystem.join(folder, "saved_model.pb")):
            raise ServingError(
                f"release {self.version} is incomplete: there is no SavedModel in {folder}; push "
                "again, or choose another version"
            )
        return folder


@dataclass(frozen=True)
class UnreleasedModel(Release):
    """The models as the Trainer leaves them: `serving_dir` is their folder, `version` is 0."""

    def model_folder(self, network: str) -> str:
        """See `Release`."""
        folder = filesystem.join(self.serving_dir, network)
        if not filesystem.is_file(filesystem.join(folder, "saved_model.pb")):
            raise ServingError(f"the model is incomplete: there is no SavedModel in {folder}")
        return folder


def networks_among(names: Iterable[str]) -> tuple[str, ...]:
    """`SERVED_NETWORKS`, and `IMAGE_ENCODER` if that is among the names."""
    return (*SERVED_NETWORKS, *([IMAGE_ENCODER] if IMAGE_ENCODER in names else []))


def networks_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The networks of a release, by its files, or of an unreleased model, by its manifest."""
    names = {path.partition("/")[0] for path in facts.get("files") or ()}
    manifest = facts.get("manifest")
    if not names and isinstance(manifest, dict):
        names = set(manifest.get("parameters") or ())
    return networks_among(names)


def list_versions(serving_dir: str) -> list[int]:
    """The versions that are releases, newest last.

    Raises:
        ServingError: There is no such directory, or its address has a secret in it.
    """
    check_place(serving_dir)
    if not filesystem.is_folder(serving_dir):
        raise ServingError(
            f"there is no serving directory {serving_dir}; run the pipeline first, or name "
            "another directory (--serving-dir)"
        )
    folder = filesystem.join(serving_dir, RELEASES)
    if not filesystem.is_folder(folder):
        return []
    matches = map(_RELEASE_FILE.fullmatch, filesystem.list_folder(folder))
    return sorted(int(match[1]) for match in matches if match)


def configured_versions(serving_dir: str) -> list[int]:
    """The versions that servers load by `models.config`, current last; empty if that is missing.

    Raises:
        ServingError: `models.config` is damaged.
    """
    path = filesystem.join(serving_dir, CONFIG_NAME)
    if not filesystem.is_file(path):
        return []
    named = named_versions(serving_dir)
    if not named or any(named.count(version) != len(SERVED_NETWORKS) for version in named):
        raise ServingError(
            f"{path} is damaged: it names the versions {named}; to write it again: "
            f"{rollback_command(serving_dir, max(list_versions(serving_dir), default=1))}"
        )
    return sorted(set(named))


def current_version(serving_dir: str) -> int:
    """The current release: the highest configured version, or the newest if none is configured.

    Raises:
        ServingError: There is no such directory or no release, or `models.config` is damaged.
    """
    versions = list_versions(serving_dir)
    if not versions:
        raise ServingError(
            f"there is no release in {serving_dir}; a run of the pipeline pushes one if its model "
            "is blessed, and --model draws with a model that is not"
        )
    current = (configured_versions(serving_dir) or versions)[-1]
    if current not in versions:
        raise ServingError(
            f"the configured version {current} is not a release of {serving_dir}; there are: "
            f"{', '.join(map(str, versions))}; to serve the newest: "
            f"{rollback_command(serving_dir, versions[-1])}"
        )
    return current


def rollback_command(serving_dir: str, version: int) -> str:
    """The command that serves a release again."""
    return module_command(
        "serving.releases", "rollback", "--to", str(version), "--serving-dir", place(serving_dir)
    )


def read_rollback(serving_dir: str) -> dict[str, Any] | None:
    """The latest rollback: `from`, `to` and `at`; None if there was none."""
    path = filesystem.join(serving_dir, RELEASES, ROLLBACK_NAME)
    if not filesystem.is_file(path):
        return None
    rollback: dict[str, Any] = json.loads(filesystem.read_bytes(path))
    return rollback


def find_release(serving_dir: str, version: int | None = None) -> Release:
    """Reads a release, the current one if `version` is None.

    Raises:
        ServingError: There is no such directory, release or version, or its file is damaged.
    """
    current = current_version(serving_dir)
    if version is None:
        version = current
    elif version not in (versions := list_versions(serving_dir)):
        raise ServingError(
            f"there is no release {version} in {serving_dir}; there are: "
            + ", ".join(map(str, versions))
        )
    return _read_release(serving_dir, version)


def is_model(folder: str) -> bool:
    """Whether a folder is one model, as the Trainer leaves it, and not a serving directory."""
    return _manifest(folder) is not None


def find_model(folder: str) -> Release:
    """A model that is not a release.

    Args:
        folder: The Trainer's artifact, or the folder in it that has the SavedModels.

    Raises:
        ServingError: There is no model, or its manifest is damaged.
    """
    path = _manifest(folder)
    if path is None:
        raise ServingError(
            f"there is no model in {folder}: name a folder that the Trainer wrote, such as "
            "runs/default/artifacts/Trainer/model/7"
        )
    content = _read_facts(path)
    facts: dict[str, Any] = {
        name: content[name] for name in ("preset", "image_size", "defaults") if name in content
    }
    facts["manifest"] = content
    return UnreleasedModel(
        filesystem.parent(path), 0, facts, *_defaults(path, facts), *_sizes(path, facts)
    )


def _manifest(folder: str) -> str | None:
    for candidate in (folder, filesystem.join(folder, EXPORT_NAME)):
        path = filesystem.join(candidate, MODEL_MANIFEST_NAME)
        if filesystem.is_file(path):
            return path
    return None


def _read_release(serving_dir: str, version: int) -> Release:
    path = filesystem.join(serving_dir, RELEASES, f"{version}.json")
    facts = _read_facts(path)
    if str(facts.get("version", version)) != str(version):
        raise _damaged(path, f"it is about version {facts['version']}")
    return Release(serving_dir, version, facts, *_defaults(path, facts), *_sizes(path, facts))


def _read_facts(path: str) -> dict[str, Any]:
    try:
        facts = json.loads(filesystem.read_bytes(path))
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if not isinstance(facts, dict):
        raise _damaged(path, "it is not a JSON object")
    return facts


def _defaults(path: str, facts: Mapping[str, Any]) -> tuple[int, float, str]:
    """Sampling steps, guidance scale and sampler if a request names none."""
    defaults = facts.get("defaults", {})
    if not isinstance(defaults, dict):
        raise _damaged(path, "its `defaults` are not a JSON object")
    num_steps = defaults.get("num_steps", FALLBACK_STEPS)
    if type(num_steps) is not int or not 1 <= num_steps <= MAX_STEPS:
        raise _damaged(path, f"its default num_steps is {num_steps!r}, not 1 to {MAX_STEPS}")
    guidance_scale = defaults.get("guidance_scale", FALLBACK_GUIDANCE_SCALE)
    if type(guidance_scale) not in (int, float) or not 0 <= guidance_scale < math.inf:
        raise _damaged(path, f"its default guidance_scale is {guidance_scale!r}, not 0 or more")
    sampler = defaults.get("sampler", DEFAULT_SAMPLER)
    if sampler not in SAMPLERS:
        raise _damaged(
            path, f"its default sampler is {sampler!r}, not one of {', '.join(SAMPLERS)}"
        )
    return num_steps, float(guidance_scale), sampler


def _sizes(path: str, facts: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Side of the training pictures, and what heights and widths must be multiples of."""
    manifest = facts.get("manifest") or {}
    found = {
        "image_size": facts.get("image_size"),
        "size_multiple": manifest.get("size_multiple") if isinstance(manifest, dict) else None,
    }
    for name, value in found.items():
        if value is not None and (type(value) is not int or value < 1):
            raise _damaged(path, f"its {name} is {value!r}, not 1 or more")
    return found["image_size"], found["size_multiple"]


def _damaged(path: str, what: str) -> ServingError:
    if path.endswith(MODEL_MANIFEST_NAME):
        return ServingError(f"the model's file {path} is damaged: {what}; choose another model")
    return ServingError(
        f"the release file {path} is damaged: {what}; push again, or choose another version"
    )
