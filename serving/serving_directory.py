"""The serving directory: how a version of the models becomes visible, whole or not at all.

Layout:
  `<root>/{text_encoder,diffusion_model,decoder}/<version>/`: SavedModels
  `<root>/image_encoder/<version>/`: a fourth SavedModel, if the release can draw from pictures
  `<root>/single_files/<version>/`: the model in files for other tools, if requested
  `<root>/releases/<version>.json`: a version is a release if and only if this file is there
  `<root>/releases/<version>.sig`, `<version>.published.sig`: its signatures; see `serving.seals`
  `<root>/models.config`: TensorFlow Serving's configuration, naming the current release of each
    model, and the one before it; written last
  `<root>/releases/rollback.json`: which release was rolled back, if the latest change was a
    rollback
  `<root>/releases/last_version`: the highest number ever used
  `<root>/.staging-<uuid>/`: a version in the making
  `<root>/.lock` or `<root>/.claims/`: who is writing; see `serving.lock`

Several folders cannot be renamed at once, and object stores cannot rename folders at all. That is
why `models.config` tells a server what to load, instead of the server finding it by itself: it is
one file, which is replaced at once. Clients ask all models for the same version. A server changes
the models one after another, so for a while they would have no version in common. The previous
release therefore stays loaded until the next one comes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from serving import seals
from serving.errors import ServingError, check_place
from serving.lock import Held, locked
from serving.releases import (
    C2PA,
    CONFIG_NAME,
    FOLDERS,
    IMAGE_ENCODER,
    RELEASES,
    ROLLBACK_NAME,
    SERVED_NETWORKS,
    SINGLE_FILES,
    configured_versions,
    current_version,
    list_versions,
    networks_among,
    read_rollback,
    rollback_command,
)
from storage import filesystem
from storage.model_signatures import SigningKey
from storage.transfer import ByteProgress
from storage.user_errors import FailedError

CAPTIONS = "captions_published"
"""Fact given to `publish`: false if a release must not contain captions."""
BATCH_SIZE = "batch_size"
"""Fact given to `publish`: how many pictures servers draw together; absent if one at a time."""
LAST_VERSION_NAME = "last_version"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
BATCHING_FILE = "batching_params.pbtxt"
"""Beside a SavedModel: how TensorFlow Serving batches requests to it, if batching is enabled."""

_STAGING_PREFIX = ".staging-"
_VERSION = re.compile(r"[0-9]+")
_MODEL_CONFIG = """\
  config {{
    name: "{name}"
    base_path: {base_path}
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ {versions} }} }}
  }}
"""
# Older versions of this program count the versions of three models, and do not see a list.
_VERSION_LIST = "versions: [{}]"

logger = logging.getLogger(__name__)


class CorruptCopyError(FailedError):
    """A copied file does not have the bytes of its source."""


class ModelRefusedError(RuntimeError):
    """The check refuses a staged model; the message is the reason."""


WriteFile = Callable[[str, int], None]
"""Writes a file to a path on this machine, for the release with a number."""


@dataclasses.dataclass(frozen=True)
class _Extra:
    """The parts of a release that are not copied; see `ServingDirectory.publish`."""

    model_files: Mapping[tuple[str, str], bytes]
    single_files: Mapping[str, WriteFile]
    key: SigningKey | None
    signature: bytes | None

    def signatures(self, version: int, files: Mapping[str, str]) -> dict[str, bytes]:
        """The signatures of a release, by their names."""
        if self.key is not None:
            return seals.signed_as(self.key, version, files)
        _, published = seals.signature_names(version)
        return {} if self.signature is None else {published: self.signature}


class ServingDirectory:
    """One serving directory, with the operations that change it."""

    def __init__(self, root: str) -> None:
        """Opens `root`, which need not exist: a local path or one that `tf.io.gfile` can read.

        Raises:
            ServingError: The address has a secret in it.
        """
        check_place(root)
        root = root.removeprefix("file://")
        self._root = root.rstrip("/") if filesystem.is_remote(root) else os.path.abspath(root)

    @property
    def root(self) -> str:
        """The directory, absolute."""
        return self._root

    def publish(
        self,
        source: str,
        facts: Mapping[str, Any],
        check: Callable[[str], None],
        warmup: Mapping[str, bytes] | None = None,
        version: int | None = None,
        single_files: Mapping[str, WriteFile] | None = None,
        batching: bytes | None = None,
        key: SigningKey | None = None,
        signature: bytes | None = None,
    ) -> dict[str, Any]:
        """Makes the models in `source` the next version, and serves it.

        A repetition of the newest release publishes nothing new, for example after a crash before
        the metadata was written, or if a training was exported again. The remains of earlier
        attempts are removed first.

        Args:
            source: Folder with a SavedModel for each of `SERVED_NETWORKS`, for `IMAGE_ENCODER` if
                the version can draw from pictures, and with the folder `SINGLE_FILES` if the
                release was published before.
            facts: What else to write into the release. Repetitions are recognised by `model`, by
                `manifest` if it names the training, and by `SINGLE_FILES`, `CAPTIONS`,
                `BATCH_SIZE` and `C2PA`.
            check: Called with the staged copy of `source`; raises a `ModelRefusedError` if it
                should not be published.
            warmup: By network, TFRecords of the requests that TensorFlow Serving makes before it
                serves a version.
            version: The number to use, if it is above all used numbers.
            single_files: By name, the functions that write the single files made for the release.
            batching: Contents of each model's `BATCHING_FILE`; `None` for no such file.
            key: The key to sign the release with; `None` for no signature. A repetition of the
                newest release is signed, too.
            signature: The verified signature that came with a published release; `None` for none.

        Returns:
            The release: `facts`, `version`, and `files`, which maps the path of each file below
            the root to its SHA-256.

        Raises:
            CorruptCopyError: A file changed while it was copied.
            ModelRefusedError: From `check`.
            LockLostError: Another push assumed that this one is dead.
        """
        model_files = {(network, WARMUP_FILE): c for network, c in (warmup or {}).items()}
        if batching is not None:
            model_files |= {(network, BATCHING_FILE): batching for network in networks_in(source)}
        extra = _Extra(model_files, single_files or {}, key, signature)
        filesystem.make_folder(self._root)
        with locked(self._root) as lock:
            # Before the clean-up: a number that was ever visible, finished or not, stays used.
            following = max(self._used_versions(), default=0) + 1
            self._remove_unfinished()
            repeated = self._repetition(source, facts, extra)
            if repeated is not None:
                self._sign_again(repeated, extra)
                self._serve_again(repeated["version"])
                return repeated
            try:
                number = max(following, version or 0)
                return self._publish(source, facts, check, extra, number, lock)
            except Exception:
                # The original error is the one to report.
                with contextlib.suppress(OSError):
                    self._remove_unfinished()
                raise

    def rollback(self, version: int | None = None) -> int:
        """Serves an earlier release again, once its files are verified; returns its version.

        It can also return to a later release. The releases themselves stay as they are.

        Args:
            version: The release to serve; the one before the current one if None.

        Raises:
            ServingError: There is no such release, or its files are damaged.
        """
        with locked(self._root):
            current: int | None = None
            # Naming a version repairs a directory that has lost its current one.
            with contextlib.suppress(ServingError) if version else contextlib.nullcontext():
                current = current_version(self._root)
            if version is None:
                assert current is not None
                earlier = [number for number in self.releases() if number < current]
                if not earlier:
                    raise ServingError(f"there is no release before {current} in {self._root}")
                version = earlier[-1]
            if damaged := self.damaged_files(version):
                raise ServingError(
                    f"release {version} is damaged: {seals.in_words(damaged)}; choose another "
                    "version"
                )
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            note = {"from": current, "to": version, "at": now}
            filesystem.write_atomically(self._path(RELEASES, ROLLBACK_NAME), _json(note))
            self._write_config(version)
        return version

    def settle_in(self, apply: Callable[[str], str]) -> None:
        """Corrects the addresses in a directory that was moved; writes only what has to change.

        Args:
            apply: Turns an address, or text with addresses in it, into its present form.
        """
        if not filesystem.is_folder(self._path(RELEASES)):
            return
        moved = {}
        for path in map(self._release_path, self.releases()):
            text = filesystem.read_bytes(path).decode(errors="surrogateescape")
            if (now := apply(text)) != text:
                moved[path] = now.encode(errors="surrogateescape")
        # A damaged configuration is reported when it is needed.
        configured: list[int] = []
        with contextlib.suppress(ServingError):
            configured = configured_versions(self._root)
        elsewhere = configured and not self._is_configured_here()
        if not moved and not elsewhere:
            return
        with locked(self._root):
            for path, contents in moved.items():
                filesystem.write_atomically(path, contents)
            if elsewhere:
                self._write_config(configured[-1])

    def prune(self, keep: int) -> list[int]:
        """Removes all releases but the newest `keep` and those that servers load.

        Returns:
            The versions that were removed.

        Raises:
            ValueError: `keep` is less than 1.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be 1 or more")
        with locked(self._root):
            loaded = configured_versions(self._root)
            pruned = [version for version in self.releases()[:-keep] if version not in loaded]
            for version in pruned:
                # Stops being a release first; the rest is then removed even after a crash.
                filesystem.remove_file(self._release_path(version))
            self._remove_unfinished()
        return pruned

    def kept(self, keep: int) -> dict[str, list[int]]:
        """The releases that `prune` keeps, by reason."""
        releases, loaded = self.releases(), configured_versions(self._root)
        newest = releases[-keep:]
        reasons = {
            f"among the newest {keep}": [v for v in newest if v not in loaded],
            "the current one": loaded[-1:],
            "which servers keep loaded beside it until the next push": loaded[:-1],
        }
        return {reason: versions for reason, versions in reasons.items() if versions}

    def releases(self) -> list[int]:
        """The versions that are releases, newest last."""
        return list_versions(self._root) if filesystem.is_folder(self._root) else []

    def read_release(self, version: int) -> dict[str, Any]:
        """What was written about a release.

        Raises:
            ServingError: There is no such release.
        """
        if version not in self.releases():
            known = ", ".join(map(str, self.releases())) or "none"
            raise ServingError(f"there is no release {version} in {self._root}; there are: {known}")
        release: dict[str, Any] = json.loads(filesystem.read_bytes(self._release_path(version)))
        return release

    def damaged_files(self, version: int) -> list[seals.Fault]:
        """The files of a release that are changed, missing or added."""
        pushed = self.read_release(version)["files"]
        return seals.faults(pushed, seals.digests(self._root, version))

    def _publish(
        self,
        source: str,
        facts: Mapping[str, Any],
        check: Callable[[str], None],
        extra: _Extra,
        version: int,
        lock: Held,
    ) -> dict[str, Any]:
        staging = self._path(f"{_STAGING_PREFIX}{uuid.uuid4().hex}")
        copied = {
            f"{folder}/{version}/{name}": (
                filesystem.join(source, folder, name),
                filesystem.join(staging, folder, name),
            )
            for folder, name in _files_in(source)
        }
        # Each file is read again on both sides.
        total = 2 * sum(filesystem.size(original) for original, _ in copied.values())
        with ByteProgress("copying the release and verifying the copy", total) as progress:
            files = {
                name: _copy_verified(*paths, progress.update) for name, paths in copied.items()
            }
        for (network, name), contents in extra.model_files.items():
            path = filesystem.join(staging, network, name)
            filesystem.make_folder(filesystem.parent(path))
            filesystem.write_bytes(path, contents)
            files[f"{network}/{version}/{name}"] = filesystem.sha256(path)
        check(staging)
        for name, write in extra.single_files.items():
            path = filesystem.join(staging, SINGLE_FILES, name)
            files[f"{SINGLE_FILES}/{version}/{name}"] = _written(path, write, version)
        filesystem.make_folder(self._path(RELEASES))
        lock.check()
        last_version = self._path(RELEASES, LAST_VERSION_NAME)
        filesystem.write_atomically(last_version, str(version).encode())
        for folder in FOLDERS:
            staged = filesystem.join(staging, folder)
            if folder in SERVED_NETWORKS or filesystem.is_folder(staged):
                filesystem.move_folder(staged, self._version_folder(folder, version))
        if filesystem.is_folder(staging):
            filesystem.remove_folder(staging)
        lock.check()
        release = {**facts, "version": version, "files": dict(sorted(files.items()))}
        self._write_signatures(extra.signatures(version, files))
        filesystem.write_atomically(self._release_path(version), _json(release))
        self._write_config(version)
        return release

    def _repetition(
        self, source: str, facts: Mapping[str, Any], extra: _Extra
    ) -> dict[str, Any] | None:
        """The newest release if it has the same model and its files are intact."""
        releases = self.releases()
        if not releases:
            return None
        release = self.read_release(releases[-1])
        exported_again = _is_export_of_the_same(release, facts)
        if release.get("model") != facts.get("model") and not exported_again:
            return None
        if any(
            release.get(name) != facts.get(name)
            for name in (SINGLE_FILES, CAPTIONS, BATCH_SIZE, C2PA)
        ):
            return None
        version = release["version"]
        expected = {
            f"{folder}/{version}/{name}": filesystem.join(source, folder, name)
            for folder, name in _files_in(source)
        }
        made = {f"{network}/{version}/{name}" for network, name in extra.model_files}
        made |= {f"{SINGLE_FILES}/{version}/{name}" for name in extra.single_files}
        if expected.keys() | made != release["files"].keys() or self.damaged_files(version):
            return None
        # TensorFlow gives an export a number of its own.
        same = exported_again or all(
            filesystem.sha256(path) == release["files"][n] for n, path in expected.items()
        )
        return release if same else None

    def _sign_again(self, release: Mapping[str, Any], extra: _Extra) -> None:
        """Signs a release if a key was added or changed after its push."""
        version = release["version"]
        if extra.key is None or seals.signer_of(self._root, version) == extra.key.identity:
            return
        self._write_signatures(extra.signatures(version, release["files"]))

    def _write_signatures(self, signatures: Mapping[str, bytes]) -> None:
        for name, bundle in signatures.items():
            filesystem.write_atomically(self._path(RELEASES, name), bundle)

    def _serve_again(self, version: int) -> None:
        """Serves a release if a crash came before `models.config`; not after a rollback."""
        configured, rollback = configured_versions(self._root), read_rollback(self._root)
        current = configured[-1] if configured else None
        if current == version:
            logger.info("This model is already release %d.", version)
        elif rollback is not None and rollback["to"] == current:
            logger.warning(
                "This model is release %d, but this directory was rolled back to %d and stays "
                "there; to serve it again: %s",
                *(version, current, rollback_command(self._root, version)),
            )
        else:
            self._write_config(version)

    def _used_versions(self) -> set[int]:
        used = {
            *self.releases(),
            *(v for name in FOLDERS for v in self._folders(name)),
        }
        path = self._path(RELEASES, LAST_VERSION_NAME)
        if filesystem.is_file(path):
            used.add(int(filesystem.read_bytes(path)))
        return used

    def _folders(self, folder: str) -> list[int]:
        return [int(name) for name in self._list(folder) if _VERSION.fullmatch(name)]

    def _remove_unfinished(self) -> None:
        releases = self.releases()
        for folder in FOLDERS:
            for version in self._folders(folder):
                if version not in releases:
                    filesystem.remove_folder(self._version_folder(folder, version))
        for name in self._list(RELEASES):
            of = seals.version_of(name)
            if of is not None and of not in releases:
                filesystem.remove_file(self._path(RELEASES, name))
        for name in self._list(""):
            if name.startswith(_STAGING_PREFIX):
                filesystem.remove_folder(self._path(name))
        for folder in ("", RELEASES):
            for name in self._list(folder):
                if name.startswith(filesystem.PARTIAL_PREFIX):
                    filesystem.remove_file(self._path(*filter(None, (folder, name))))

    def _write_config(self, version: int) -> None:
        """Makes a version the current one, and keeps the one before it loaded."""
        try:
            loaded = configured_versions(self._root)
        except ServingError:
            # It is about to be repaired.
            loaded = []
        releases = self.releases()
        before = [number for number in loaded if number < version and number in releases]
        served = [*before[-1:], version]
        versions = dict.fromkeys(SERVED_NETWORKS, " ".join(f"versions: {v}" for v in served))
        folders = {v: self._version_folder(IMAGE_ENCODER, v) for v in served}
        with_pictures = [v for v, folder in folders.items() if filesystem.is_folder(folder)]
        if with_pictures:
            listed = ", ".join(map(str, with_pictures))
            versions[IMAGE_ENCODER] = _VERSION_LIST.format(listed)
        models = "".join(
            _MODEL_CONFIG.format(
                name=network, base_path=_base_path(self._path(network)), versions=these
            )
            for network, these in versions.items()
        )
        contents = f"model_config_list {{\n{models}}}\n"
        filesystem.write_atomically(self._path(CONFIG_NAME), contents.encode())

    def _is_configured_here(self) -> bool:
        """Whether `models.config` tells servers to load the folders of this directory."""
        contents = filesystem.read_bytes(self._path(CONFIG_NAME)).decode()
        return all(_base_path(self._path(network)) in contents for network in SERVED_NETWORKS)

    def _path(self, *names: str) -> str:
        return filesystem.join(self._root, *names)

    def _version_folder(self, folder: str, version: int) -> str:
        return self._path(folder, str(version))

    def _release_path(self, version: int) -> str:
        return self._path(RELEASES, f"{version}.json")

    def _list(self, folder: str) -> Iterable[str]:
        path = self._path(folder) if folder else self._root
        return filesystem.list_folder(path) if filesystem.is_folder(path) else []


def _files_in(source: str) -> Iterator[tuple[str, str]]:
    """The files of a folder that go into a release, each with the one of `FOLDERS` it is in."""
    for folder in FOLDERS:
        path = filesystem.join(source, folder)
        if folder in SERVED_NETWORKS or filesystem.is_folder(path):
            for name in filesystem.files_below(path):
                yield folder, name


def networks_in(source: str) -> tuple[str, ...]:
    """The networks whose SavedModels are in the folder of a version."""
    return networks_among(filesystem.list_folder(source))


def _is_export_of_the_same(release: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether two models, by their manifests, come from one training and serve alike."""
    first, second = (of.get("manifest") or {} for of in (release, facts))
    names = ("training_id", "export_weights", "defaults", "size_multiple")
    computes = [of.get("compute", "float32") for of in (first, second)]
    return (
        computes[0] == computes[1]
        and second.get("training_id") is not None
        and all(first.get(name) == second.get(name) for name in names)
    )


def _base_path(path: str) -> str:
    """A path quoted for text format, which quotes like JSON."""
    return json.dumps(path, ensure_ascii=False)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode()


def _written(path: str, write: WriteFile, version: int) -> str:
    """Has a file written, on this machine or elsewhere, and returns its SHA-256."""
    if not filesystem.is_remote(path):
        filesystem.make_folder(filesystem.parent(path))
        write(path, version)
        return filesystem.sha256(path)
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, os.path.basename(path))
        write(local, version)
        return _copy_verified(local, path)


def _copy_verified(
    source: str, target: str, counted: Callable[[int], None] = lambda size: None
) -> str:
    """Copies a file and returns its SHA-256."""
    filesystem.copy(source, target)
    expected, actual = filesystem.sha256(source, counted), filesystem.sha256(target, counted)
    if actual != expected:
        raise CorruptCopyError(
            f"the copy {target} of {source} is corrupt: its SHA-256 is {actual}, expected "
            f"{expected}; nothing was pushed, push again"
        )
    return expected
