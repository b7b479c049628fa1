"""Base weights: found, verified and named by a hash, before anything loads them.

Nothing here imports TensorFlow, so that missing or damaged weights are told at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from storage.folders import HASHES_NAME, Folder, LocalFolder, open_folder
from storage.transfer import sha256_of
from trainer.presets import NETWORKS, Numerics, Preset
from trainer.weights import diffusers_layout
from trainer.weights.errors import WeightsError

DEFAULT_SOURCE = "default"
RANDOM_SOURCE = "random"

_SHIPPED = Path(__file__).resolve().parents[1] / "base_weights"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BaseWeights:
    """Base weights where they lie.

    Attributes:
        folder: Where.
        numerics: How layers with these weights must compute: `diffusers` where the folder has that
            library's layout, otherwise `keras_cv`.
    """

    folder: Folder
    numerics: Numerics

    def files(self, preset: Preset, network: str) -> tuple[str, ...]:
        """Names of the files that hold a network; raises a `WeightsError` where one is missing."""
        if self.numerics == "diffusers":
            return diffusers_layout.network_files(self.folder, network)
        name = preset.weight_files[network].name
        if not self.folder.exists(name):
            raise WeightsError(
                f"the {network}'s base weights are missing: there is no {self.folder.shown(name)}; "
                "set base_weights to a folder that holds it, or to "
                f"{RANDOM_SOURCE!r} to start from noise"
            )
        return (name,)

    def expected_hash(self, preset: Preset, network: str, name: str) -> str:
        """SHA-256 (hex) that a file should have.

        The folder's own `SHA256SUMS` has the first word, then what is published. A file in
        diffusers' layout has no published hash: it is what it is now, so that a later change shows.

        Raises:
            WeightsError: Nobody says what the hash should be.
        """
        listed = self.folder.listed_hashes().get(name)
        if listed is not None:
            return listed
        if self.numerics == "diffusers":
            return self.folder.sha256(name)
        published = preset.weight_files[network].sha256
        if published is None:
            raise WeightsError(
                f"{self.folder.shown(HASHES_NAME)} does not list {name}, so the file cannot be "
                "verified"
            )
        return published

    def verify(self, preset: Preset, network: str, name: str, path: Path) -> None:
        """Raises a `WeightsError` where a file on this machine is not what it should be."""
        expected, actual = self.expected_hash(preset, network, name), sha256_of(path)
        if actual != expected:
            raise WeightsError(
                f"{self.folder.shown(name)} is corrupt or another file: its SHA-256 is {actual}, "
                f"expected {expected}; fetch it again, or, if it is meant to be another, list its "
                f"hash in {HASHES_NAME} beside it"
            )


def locate(preset: Preset, source: str) -> BaseWeights:
    """Finds base weights, and tells by the files which layout they have.

    Args:
        preset: Whose weights.
        source: `"default"`, a folder, a `gs://` address or `hf://ORG/NAME[@REVISION][/FOLDER]`; not
            `"random"`.

    Raises:
        WeightsError: There is no default for this preset, the place has files of both layouts, or
            diffusers' configurations there describe another model.
    """
    address = source
    if source == DEFAULT_SOURCE:
        if not preset.ships_weights and preset.published_at is None:
            raise WeightsError(
                f"preset {preset.name!r} has no default base weights: set base_weights to a folder "
                f"that holds {', '.join(file.name for file in preset.weight_files.values())}"
            )
        address = preset.published_at or str(_SHIPPED / preset.name)
    folder = open_folder(address)
    keras_files = [f.name for f in preset.weight_files.values() if folder.exists(f.name)]
    if not diffusers_layout.is_diffusers(folder):
        return BaseWeights(folder, "keras_cv")
    if keras_files:
        raise WeightsError(
            f"{folder.address} holds {keras_files[0]} and diffusers' layout as well: set "
            "base_weights to a folder with one of them"
        )
    diffusers_layout.check_configs(folder, preset)
    return BaseWeights(folder, "diffusers")


def preset_for(preset: Preset, source: str) -> Preset:
    """The preset whose layers compute as the base weights at `source` were made for."""
    numerics = "keras_cv" if source == RANDOM_SOURCE else locate(preset, source).numerics
    return dataclasses.replace(preset, numerics=numerics)


def prepare(preset: Preset, source: str, *, fetch: bool = True) -> str:
    """Finds and verifies all four networks' files before anything starts.

    Files of the hub are fetched into its cache. Those of a bucket are only looked for: they are
    verified when they are read.

    Args:
        preset: Whose weights.
        source: See `locate`.
        fetch: Whether files of the hub are needed on this machine; otherwise they, too, are only
            looked for.

    Returns:
        `source`, a model of the hub with its commit, so that the same is found later.

    Raises:
        WeightsError: A file is missing, damaged or of another model.
    """
    if source == RANDOM_SOURCE:
        return source
    base = locate(preset, source)
    in_place = isinstance(base.folder, LocalFolder)
    for network in NETWORKS:
        for name in base.files(preset, network):
            if in_place or (fetch and base.folder.address.startswith("hf://")):
                with base.folder.local(name) as path:
                    base.verify(preset, network, name, path)
    shipped = source == DEFAULT_SOURCE and in_place
    return source if shipped else base.folder.address


def base_weights_hash(preset: Preset, source: str, networks: Sequence[str] = NETWORKS) -> str:
    """SHA-256 (hex) that stands for the base weights of `networks`; `"random"` where they are."""
    if source == RANDOM_SOURCE:
        return RANDOM_SOURCE
    base = locate(preset, source)
    hashes = []
    for network in networks:
        parts = [base.expected_hash(preset, network, name) for name in base.files(preset, network)]
        hashes.append(
            parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()
        )
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
