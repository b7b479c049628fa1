"""The serving directory: how a version of three models becomes visible, whole or not at all.

Layout:
  `<root>/{text_encoder,diffusion_model,decoder}/<version>/`: SavedModels
  `<root>/models.config`: TensorFlow Serving's configuration, naming that version of each
  `<root>/releases/<version>.json`: written last; a version is a release if and only if it is there
  `<root>/.staging-<uuid>/`: a version in the making
  `<root>/.lock`: held while pushing

Renames are not atomic in object stores, which is why the release file is the mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2
from tfx.dsl.io import fileio

from serving.releases import NETWORKS, list_versions

CONFIG_NAME = "models.config"
RELEASES = "releases"

_STAGING_PREFIX = ".staging-"
_PARTIAL_PREFIX = ".partial-"
_LOCK_NAME = ".lock"
_VERSION = re.compile(r"[0-9]+")
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


class CorruptCopyError(RuntimeError):
    """A copied file does not have its source's bytes."""


class ModelRefusedError(RuntimeError):
    """The check of a staged model says no; the message is the reason."""


class ServingDirectory:
    """One serving directory, as the pusher sees it."""

    def __init__(self, root: str) -> None:
        """Opens `root`, which need not exist."""
        self._root = root.rstrip("/") if "://" in root else os.path.abspath(root)

    @property
    def root(self) -> str:
        """The directory, absolute."""
        return self._root

    def publish(
        self, source: str, facts: Mapping[str, Any], check: Callable[[str], None]
    ) -> dict[str, Any]:
        """Makes the three models in `source` the next version.

        A repetition of the newest release, such as after a crash before the metadata was written,
        publishes nothing new. What earlier attempts left behind is removed first.

        Args:
            source: Folder with a SavedModel for each of `NETWORKS`.
            facts: What else to write into the release; `model` tells repetitions apart.
            check: Called with the staged copy of `source`; raises a `ModelRefusedError` where it
                should not be published.

        Returns:
            The release: `facts`, `version`, and `files`, from each file's path below the root to
            its SHA-256.

        Raises:
            CorruptCopyError: A file changed on its way.
            ModelRefusedError: From `check`.
        """
        fileio.makedirs(self._root)
        with self._locked():
            # Before tidying up: a number that was visible once, finished or not, stays used.
            version = max(self._used_versions(), default=0) + 1
            self._remove_unfinished()
            repeated = self._repetition(source, facts)
            if repeated is not None:
                logger.info("This model is release %d already.", repeated["version"])
                return repeated
            try:
                return self._publish(source, facts, check, version)
            except Exception:
                self._remove_unfinished()
                raise

    def prune(self, keep: int) -> list[int]:
        """Removes all releases but the newest `keep`; returns their versions."""
        with self._locked():
            pruned = self.releases()[:-keep]
            for version in pruned:
                # First it stops being a release; what then is left is removed even after a crash.
                fileio.remove(self._release_path(version))
            self._remove_unfinished()
        return pruned

    def releases(self) -> list[int]:
        """The versions that are releases, the newest last."""
        return list_versions(self._root) if fileio.exists(self._root) else []

    def read_release(self, version: int) -> dict[str, Any]:
        """What was written about a release."""
        with fileio.open(self._release_path(version), "r") as f:
            release: dict[str, Any] = json.loads(f.read())
        return release

    def _publish(
        self, source: str, facts: Mapping[str, Any], check: Callable[[str], None], version: int
    ) -> dict[str, Any]:
        staging = os.path.join(self._root, f"{_STAGING_PREFIX}{uuid.uuid4().hex}")
        files = {}
        for network in NETWORKS:
            for relative in _files(os.path.join(source, network)):
                digest = _copy_verified(
                    os.path.join(source, network, relative),
                    os.path.join(staging, network, relative),
                )
                files[f"{network}/{version}/{relative}"] = digest
        check(staging)
        for network in NETWORKS:
            fileio.makedirs(os.path.join(self._root, network))
            fileio.rename(os.path.join(staging, network), self._version_folder(network, version))
        fileio.rmtree(staging)
        self._write_config(version)
        release = {**facts, "version": version, "files": dict(sorted(files.items()))}
        fileio.makedirs(os.path.join(self._root, RELEASES))
        contents = json.dumps(release, indent=2, sort_keys=True, allow_nan=False)
        self._write_atomically(self._release_path(version), contents)
        return release

    def _repetition(self, source: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest release if it is of the same model and its files are as they should be."""
        releases = self.releases()
        if not releases:
            return None
        release = self.read_release(releases[-1])
        if release.get("model") != facts.get("model"):
            return None
        expected = {
            f"{network}/{release['version']}/{relative}": os.path.join(source, network, relative)
            for network in NETWORKS
            for relative in _files(os.path.join(source, network))
        }
        if expected.keys() != release["files"].keys():
            return None
        for relative, digest in release["files"].items():
            path = os.path.join(self._root, relative)
            if not fileio.exists(path) or _sha256(path) != digest:
                return None
            if _sha256(expected[relative]) != digest:
                return None
        return release

    def _used_versions(self) -> set[int]:
        return {*self.releases(), *(v for network in NETWORKS for v in self._folders(network))}

    def _folders(self, network: str) -> list[int]:
        return [int(name) for name in self._list(network) if _VERSION.fullmatch(name)]

    def _remove_unfinished(self) -> None:
        releases = self.releases()
        configured = self._configured_versions()
        if configured and not configured <= set(releases):
            # A server that polls must not be told of a version whose folders go away.
            if releases:
                self._write_config(releases[-1])
            else:
                fileio.remove(os.path.join(self._root, CONFIG_NAME))
        for network in NETWORKS:
            for version in self._folders(network):
                if version not in releases:
                    fileio.rmtree(self._version_folder(network, version))
        for name in self._list(""):
            if name.startswith(_STAGING_PREFIX):
                fileio.rmtree(os.path.join(self._root, name))
        for folder in ("", RELEASES):
            for name in self._list(folder):
                if name.startswith(_PARTIAL_PREFIX):
                    fileio.remove(os.path.join(self._root, folder, name))

    def _configured_versions(self) -> set[int]:
        path = os.path.join(self._root, CONFIG_NAME)
        if not fileio.exists(path):
            return set()
        with fileio.open(path, "r") as f:
            config = text_format.Parse(f.read(), model_server_config_pb2.ModelServerConfig())
        return {
            version
            for model in config.model_config_list.config
            for version in model.model_version_policy.specific.versions
        }

    def _write_config(self, version: int) -> None:
        config = model_server_config_pb2.ModelServerConfig()
        for network in NETWORKS:
            model = config.model_config_list.config.add()
            model.name = network
            model.base_path = os.path.join(self._root, network)
            model.model_platform = "tensorflow"
            model.model_version_policy.specific.versions.append(version)
        path = os.path.join(self._root, CONFIG_NAME)
        self._write_atomically(path, text_format.MessageToString(config), overwrite=True)

    def _write_atomically(self, path: str, contents: str, overwrite: bool = False) -> None:
        folder = os.path.dirname(path)
        partial = os.path.join(folder, f"{_PARTIAL_PREFIX}{uuid.uuid4().hex}")
        with fileio.open(partial, "w") as f:
            f.write(contents)
        fileio.rename(partial, path, overwrite=overwrite)

    def _version_folder(self, network: str, version: int) -> str:
        return os.path.join(self._root, network, str(version))

    def _release_path(self, version: int) -> str:
        return os.path.join(self._root, RELEASES, f"{version}.json")

    def _list(self, folder: str) -> list[str]:
        path = os.path.join(self._root, folder) if folder else self._root
        if not fileio.isdir(path):
            return []
        # Object stores list folders with a slash at the end.
        return [str(name).rstrip("/") for name in fileio.listdir(path)]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if "://" in self._root:
            yield
            return
        # The system releases the lock when its holder dies.
        with open(os.path.join(self._root, _LOCK_NAME), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Waiting for another push to %s to end.", self._root)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _files(folder: str) -> list[str]:
    """All files below `folder`, as sorted relative paths."""
    return sorted(
        os.path.relpath(os.path.join(str(parent), str(name)), folder)
        for parent, _, names in fileio.walk(folder)
        for name in names
    )


def _copy_verified(source: str, target: str) -> str:
    """Copies a file and returns its SHA-256."""
    fileio.makedirs(os.path.dirname(target))
    fileio.copy(source, target)
    expected, actual = _sha256(source), _sha256(target)
    if actual != expected:
        raise CorruptCopyError(
            f"the copy {target} of {source} is corrupt: its SHA-256 is {actual}, expected "
            f"{expected}; nothing was pushed, push again"
        )
    return expected


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with fileio.open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
