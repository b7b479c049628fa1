"""A model that was trained before, which a training starts from in the place of the base weights.

Nothing here imports TensorFlow before weights are read, so that what cannot be started from is told
at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from storage import filesystem
from storage.errors import one_line
from storage.model_manifest import MODEL_MANIFEST_NAME, ModelManifest
from storage.user_errors import UserError
from trainer.model_spec import LORA_NAME
from trainer.presets import NETWORKS
from trainer.text.new_word import NewWord
from trainer.training_config import ResolvedTrainingConfig
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError

if TYPE_CHECKING:
    import keras
    import numpy as np

CHANGED = ("diffusion_model", "text_encoder")
"""The networks that training changes."""

CONTINUED = "adapters_continued"
"""Key of a manifest's `started_from`: whether the same adapters were trained on."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StartingModel:
    """A model as the Trainer left it, which fits the base weights of a training.

    `locate` makes one. Its weights are those that it was judged with: averaged ones, with adapters
    merged, as precise as they are stored.

    Attributes:
        folder: Of the SavedModels.
        manifest: What it says of itself.
    """

    folder: str
    manifest: ModelManifest

    @classmethod
    def locate(cls, folder: str, base_model: BaseModel) -> StartingModel:
        """Looks at a model, and whether it can be started from.

        Args:
            folder: Of the SavedModels and the manifest.
            base_model: What the training has besides: the networks that no training changes, by
                which its latents were made.

        Raises:
            WeightsError: It is none, of another preset, picture size, prediction or other base
                weights, or its weights are gone.
        """
        try:
            manifest = ModelManifest.find(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{filesystem.join(folder, MODEL_MANIFEST_NAME)} is damaged ({one_line(error)}): "
                "start from another model"
            ) from None
        if manifest is None:
            raise WeightsError(
                f"there is no {MODEL_MANIFEST_NAME} in {folder}: a training starts from a model as "
                "the Trainer leaves it, such as runs/default/artifacts/Trainer/model/7"
            )
        preset, size = base_model.preset.name, base_model.image_size
        if not manifest.fits(preset, size):
            raise WeightsError(
                f"the model in {folder} is of preset {manifest.preset!r} at {manifest.image_size} "
                f"pixels, and this training is of {preset!r} at {size}: give those, or start from "
                "another model"
            )
        learned = manifest.prediction, manifest.zero_terminal_snr
        asked = base_model.preset.prediction, base_model.preset.zero_terminal_snr
        if learned != asked:
            raise WeightsError(
                f"the model in {folder} has learned to predict {_in_words(*learned)}, and this "
                f"training is of {_in_words(*asked)}: set model.prediction and "
                "model.zero_terminal_snr to what it has, or start from another model"
            )
        others = [
            network
            for network in NETWORKS
            if manifest.base_weights.get(network) != base_model.hash([network])
        ]
        if others or manifest.numerics != base_model.preset.numerics:
            source = manifest.base_weights_source
            raise WeightsError(
                f"the model in {folder} was made from other base weights than "
                f"{base_model.base_weights!r}"
                + (f" ({', '.join(others)} differ)" if others else "")
                + ", by which this training's latents are made: give its own"
                + (f", {source!r}, with --base-weights" if source else "")
                + ", or start from another model"
            )
        for network in CHANGED:
            path = filesystem.join(folder, network, "saved_model.pb")
            if not filesystem.is_file(path):
                raise WeightsError(
                    f"the weights of the model in {folder} are gone (there is no {path}; a "
                    "clean-up leaves the manifest): start from another model"
                )
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """Names the weights: 16 hexadecimal digits of a SHA-256 over their files."""
        found = [
            filesystem.content_digest(filesystem.join(self.folder, network, "variables"))
            for network in CHANGED
        ]
        if self._rank:
            found.append(filesystem.sha256(filesystem.join(self.folder, LORA_NAME)))
        return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]

    @property
    def word(self) -> NewWord | None:
        """A new word that it knows; `None` for none."""
        return NewWord.of_fields(self.manifest.word)

    def continues_adapters(self, config: ResolvedTrainingConfig) -> bool:
        """Whether a training goes on with the model's own adapters, on the base weights.

        Otherwise they are merged, and new ones, if any are trained, lie on what that gives.

        Raises:
            UserError: They are of another shape than what is to be trained.
        """
        if not config.lora_rank or not self._rank:
            return False
        if self.manifest.started_from and not self.manifest.started_from.get(CONTINUED):
            logger.info(
                "The adapters of the model that is started from lie on another model's weights: "
                "they are merged, and new ones are trained."
            )
            return False
        training = self.manifest.training
        where = f"the model in {self.folder}"
        instead = "or training.lora_rank to 0, which trains all weights with the adapters merged"
        for name, value in (("lora_rank", config.lora_rank), ("lora_alpha", config.lora_alpha)):
            own = training.get(name)
            if own != value:
                raise UserError(
                    f"{where} has adapters of training.{name} = {own:g}, which cannot be trained "
                    f"on with {value:g}: set training.{name} to {own:g}, {instead}"
                )
        if training.get("train_text_encoder") and not config.train_text_encoder:
            raise UserError(
                f"{where} has adapters of the text encoder, too: set training.train_text_encoder "
                f"to true, {instead}"
            )
        return True

    def load(self, model: keras.Model, network: str) -> None:
        """Loads one network's weights, as they are stored.

        Args:
            model: Built by `trainer.networks` from the preset.
            network: One of `CHANGED`.

        Raises:
            WeightsError: They are missing, damaged or of another network.
        """
        import numpy as np

        # Imports TensorFlow.
        from trainer.weights.exported import exported_values

        folder = filesystem.join(self.folder, network)
        logger.info(
            "Loading the %s (%s parameters) from %s.",
            network,
            f"{model.count_params():,}",
            folder,
        )
        values = exported_values(folder, network, model)
        for variable, value in zip(model.weights, values, strict=True):
            variable.assign(np.asarray(value).astype(np.float32))

    def read_adapters(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """The adapters, `down` [width in, rank] and `up` [rank, width out], by their names.

        Raises:
            WeightsError: Their file is missing or damaged.
        """
        import safetensors
        import safetensors.numpy

        path = filesystem.join(self.folder, LORA_NAME)
        try:
            tensors = safetensors.numpy.load(filesystem.read_bytes(path))
            names = sorted({key.partition(".")[0] for key in tensors})
            return {
                name: (
                    tensors[f"{name}.lora_down.weight"].T,
                    tensors[f"{name}.lora_up.weight"].T,
                )
                for name in names
            }
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise WeightsError(
                f"the adapters in {path} are missing or damaged ({one_line(error)}): start from "
                "another model, or set training.lora_rank to 0"
            ) from None

    @property
    def _rank(self) -> int:
        return int(self.manifest.training.get("lora_rank") or 0)


def _in_words(prediction: str, zero_terminal_snr: bool) -> str:
    return f"{prediction}{' with zero terminal SNR' if zero_terminal_snr else ''}"
