"""The start of a run: a preset, a picture size, and base weights that are found and verified.

Nothing here imports TensorFlow before a network is built, so that missing or damaged weights are
reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storage.folders import HASHES_NAME, Folder, LocalFolder, open_folder
from storage.transfer import sha256_of
from trainer.presets import NETWORKS, Preset
from trainer.weights import diffusers_layout, original_layout
from trainer.weights.errors import WeightsError
from trainer.weights.original_layout import Checkpoint

if TYPE_CHECKING:
    import keras

    from trainer.weights.load import Layout

DEFAULT_WEIGHTS = "default"
RANDOM_WEIGHTS = "random"

_SHIPPED = Path(__file__).resolve().parents[1] / "base_weights"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """The four networks as they are before training.

    `locate` makes one; it finds the weights once, and they stay known.

    Attributes:
        preset: The networks. Its numerics, prediction and last timestep are those that the weights
            were made and trained for.
        image_size: Side of the pictures in pixels.
        base_weights: The address as it was given.
        folder: The folder of the weights; `None` if they are random.
        checkpoint: The single file there that holds them; `None` if each network has its own file.
        others: Source of the networks that are not in `own`; `None` if all are.
        own: The networks whose weights are in `folder`.
    """

    preset: Preset
    image_size: int
    base_weights: str
    folder: Folder | None
    checkpoint: Checkpoint | None = None
    others: BaseModel | None = None
    own: tuple[str, ...] = NETWORKS

    @classmethod
    def locate(cls, preset: Preset, image_size: int, base_weights: str) -> BaseModel:
        """Finds base weights, and infers their layout from the files.

        Args:
            preset: The preset of the weights. Layers have KerasCV's numerics if the weights are
                random or Keras files, otherwise diffusers'. The prediction, and whether the last
                timestep is pure noise, are the preset's unless the diffusers scheduler next to the
                weights says otherwise.
            image_size: Side of the pictures in pixels.
            base_weights: `"default"`, `"random"`, a folder, a `gs://` address or
                `hf://ORG/NAME[@REVISION][/FOLDER]`; with `/FILE.safetensors` after any of these, a
                single file in the original layout. Networks missing from a single file come from
                the default; networks missing from a folder of Keras files come from where the
                preset says they are published, if it does.

        Raises:
            ValueError: The networks of the preset cannot take pictures of that size.
            WeightsError: There is no default for this preset, the folder has files of both layouts,
                its diffusers configurations describe another model, or the single file is missing,
                damaged, pickled or for another model.
        """
        preset.check_image_size(image_size)
        keras_cvs = dataclasses.replace(preset, numerics="keras_cv")
        if base_weights == RANDOM_WEIGHTS:
            return cls(keras_cvs, image_size, base_weights, None)
        address = base_weights
        if base_weights == DEFAULT_WEIGHTS:
            if not preset.ships_weights and preset.published_at is None:
                raise WeightsError(
                    f"preset {preset.name!r} has no default base weights: give --base-weights a "
                    "folder or a model of the hub in diffusers' layout, or one that holds "
                    f"{', '.join(file.name for file in preset.weight_files.values())}"
                )
            address = preset.published_at or str(_SHIPPED / preset.name)
        if (single := original_layout.split_address(address)) is not None:
            return cls._of_checkpoint(preset, image_size, base_weights, *single)
        folder = open_folder(address)
        keras_files = {n: f.name for n, f in preset.weight_files.items() if folder.exists(f.name)}
        if not diffusers_layout.is_diffusers(folder):
            return cls._of_keras_files(keras_cvs, image_size, base_weights, folder, keras_files)
        if keras_files:
            raise WeightsError(
                f"{folder.address} holds both {next(iter(keras_files.values()))} and diffusers' "
                "layout: give --base-weights a folder with only one of them"
            )
        diffusers_layout.check_configs(folder, preset)
        trained = preset.trained_as(*diffusers_layout.trained_for(folder))
        diffusers = dataclasses.replace(trained, numerics="diffusers")
        return cls(diffusers, image_size, base_weights, folder)

    @classmethod
    def _of_keras_files(
        cls,
        preset: Preset,
        image_size: int,
        base_weights: str,
        folder: Folder,
        there: Collection[str],
    ) -> BaseModel:
        elsewhere = {
            network: file.published_at
            for network, file in preset.weight_files.items()
            if network not in there and file.published_at is not None
        }
        if not elsewhere:
            return cls(preset, image_size, base_weights, folder)
        [place] = set(elsewhere.values())
        others = cls(preset, image_size, place, open_folder(place))
        own = tuple(network for network in NETWORKS if network not in elsewhere)
        return cls(preset, image_size, base_weights, folder, others=others, own=own)

    @classmethod
    def _of_checkpoint(
        cls, preset: Preset, image_size: int, base_weights: str, place: str, name: str
    ) -> BaseModel:
        folder = open_folder(place)
        checkpoint = original_layout.read_checkpoint(folder, name, preset)
        own = checkpoint.networks
        lacks = set(NETWORKS) - set(own)
        others = cls.locate(preset, image_size, DEFAULT_WEIGHTS) if lacks else None
        trained = preset.trained_as(checkpoint.prediction, checkpoint.zero_terminal_snr)
        diffusers = dataclasses.replace(trained, numerics="diffusers")
        return cls(diffusers, image_size, base_weights, folder, checkpoint, others, own)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return self.preset.latent_shape(self.image_size)

    def build(self, network: str) -> keras.Model:
        """One of `NETWORKS`, with its weights.

        Raises:
            WeightsError: A file is missing, its hash is wrong, or a tensor does not fit.
        """
        # Imports Keras.
        from trainer.networks import build_network

        model = build_network(network, self.preset, self.image_size)
        self.load(model, network)
        return model

    def load(self, model: keras.Model, network: str) -> None:
        """Loads the weights of one network, after checking file hashes and every shape.

        Args:
            model: Built by `trainer.networks` from the preset.
            network: One of `NETWORKS`.

        Raises:
            WeightsError: A file is missing, its hash is wrong, or a tensor does not fit.
        """
        # Imports Keras.
        from trainer.weights.load import load_files, randomize

        holder = self._holder(network)
        if holder is not self:
            holder.load(model, network)
            return
        if self.folder is None:
            logger.warning("THE %s STARTS FROM RANDOM WEIGHTS, as requested.", network.upper())
            randomize(model, network)
            return
        names = self.files(network)
        shown = [self.folder.shown(name) for name in names]
        with contextlib.ExitStack() as stack:
            paths = [stack.enter_context(self.folder.local(name)) for name in names]
            for name, path in zip(names, paths, strict=True):
                self.verify(network, name, path)
            logger.info(
                "Loading the %s (%s parameters) from %s.",
                network,
                f"{model.count_params():,}",
                ", ".join(shown),
            )
            layout: Layout = "original" if self.checkpoint else self.preset.numerics
            load_files(model, network, layout, paths, shown)

    def prepare(self, *, fetch: bool = True) -> str:
        """Finds and verifies the files of all four networks before anything starts.

        Files of the hub are fetched into its cache. Files in a bucket are only checked for
        existence; they are verified when they are read.

        Args:
            fetch: Whether files of the hub are needed on this machine; otherwise they are only
                checked for existence too.

        Returns:
            `base_weights`; for a model of the hub with its commit, so that later runs find the
            same.

        Raises:
            WeightsError: A file is missing, damaged or for another model.
        """
        if self.folder is None:
            return self.base_weights
        for network in NETWORKS:
            self._holder(network)._prepare_network(network, fetch)
        if self.checkpoint is not None:
            self._tell_what_is_not_used(self.checkpoint)
        self._tell_where_others_are()
        if self.checkpoint is not None:
            return self.folder.shown(self.checkpoint.name)
        shipped = self.base_weights == DEFAULT_WEIGHTS and isinstance(self.folder, LocalFolder)
        return self.base_weights if shipped else self.folder.address

    def _prepare_network(self, network: str, fetch: bool) -> None:
        assert self.folder is not None
        in_place = isinstance(self.folder, LocalFolder)
        for name in self.files(network):
            if in_place or (fetch and self.folder.address.startswith("hf://")):
                with self.folder.local(name) as path:
                    self.verify(network, name, path)

    def _tell_what_is_not_used(self, checkpoint: Checkpoint) -> None:
        assert self.folder is not None
        if checkpoint.ignored:
            logger.info(
                "%s has tensors that are not part of its networks and are ignored: %s.",
                self.folder.shown(checkpoint.name),
                checkpoint.ignored_shown(),
            )

    def _tell_where_others_are(self) -> None:
        if self.others is None:
            return
        assert self.folder is not None
        assert self.others.folder is not None
        lacks = [n.replace("_", " ") for n in NETWORKS if n not in self.own]
        logger.info(
            "%s has no %s: taken from %s%s.",
            self.folder.shown(self.checkpoint.name) if self.checkpoint else self.folder.address,
            ", no ".join(lacks),
            "the default base weights, " if self.checkpoint else "",
            self.others.folder.address,
        )

    def hash(self, networks: Sequence[str] = NETWORKS) -> str:
        """SHA-256 (hex) that identifies the weights of `networks`; `"random"` if they are random.

        Raises:
            WeightsError: A file is missing, or there is no record of what its hash should be.
        """
        if self.folder is None:
            return RANDOM_WEIGHTS
        hashes = []
        for network in networks:
            holder = self._holder(network)
            parts = [holder._expected_hash(network, name) for name in holder.files(network)]
            hashes.append(parts[0] if len(parts) == 1 else _joined_hash(parts))
        return _joined_hash(hashes)

    def check_unchanged(self, expected: str, networks: Sequence[str] = NETWORKS) -> None:
        """Checks that the weights of `networks` are the ones that a run was prepared with.

        Args:
            expected: Their `hash` at that time.
            networks: The networks to check.

        Raises:
            WeightsError: They have changed since, or as for `hash`.
        """
        actual = self.hash(networks)
        if actual != expected:
            raise WeightsError(
                f"the base weights in {self.base_weights!r} have changed since the run was "
                f"prepared (hash {actual}, expected {expected}): start the run again"
            )

    def files(self, network: str) -> tuple[str, ...]:
        """Names of the files that hold a network; raises a `WeightsError` if one is missing."""
        assert self.folder is not None
        if self.checkpoint is not None:
            return (self.checkpoint.name,)
        if self.preset.numerics == "diffusers":
            return diffusers_layout.network_files(self.folder, network)
        name = self.preset.weight_files[network].name
        if not self.folder.exists(name):
            raise WeightsError(
                f"the base weights of the {network} are missing: there is no "
                f"{self.folder.shown(name)}; give --base-weights a folder that holds it, or "
                f"{RANDOM_WEIGHTS!r} to start from random weights"
            )
        return (name,)

    def verify(self, network: str, name: str, path: Path) -> None:
        """Raises a `WeightsError` if a file on this machine is not what it should be."""
        assert self.folder is not None
        expected, actual = self._expected_hash(network, name), sha256_of(path)
        if actual != expected:
            raise WeightsError(
                f"{self.folder.shown(name)} is corrupt or a different file: its SHA-256 is "
                f"{actual}, expected {expected}; fetch it again or, if the difference is intended, "
                f"list its hash in {HASHES_NAME} next to it"
            )

    def _holder(self, network: str) -> BaseModel:
        """The base model whose files hold a network: this one, or `others`."""
        return self if self.others is None or network in self.own else self.others

    def _expected_hash(self, network: str, name: str) -> str:
        """SHA-256 (hex) that a file should have.

        The folder's own `SHA256SUMS` takes precedence over the published hash. Files in other
        layouts have no published hash: they get their current one, so that a later change shows.
        """
        assert self.folder is not None
        listed = self.folder.listed_hashes().get(name)
        if listed is not None:
            return listed
        if self.preset.numerics == "diffusers":
            return self.folder.sha256(name)
        published = self.preset.weight_files[network].sha256
        if published is None:
            raise WeightsError(
                f"{self.folder.shown(HASHES_NAME)} does not list {name}, so the file cannot be "
                "verified"
            )
        return published


def _joined_hash(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
