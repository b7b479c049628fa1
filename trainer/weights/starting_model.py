"""An already trained model, from which a training starts instead of the base weights.

Nothing here imports TensorFlow before weights are read, so that an unsuitable model is reported at
once.
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
"""Key in `started_from` of a manifest: whether its adapters were continued."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StartingModel:
    """A model as the Trainer left it, which fits the base weights of a training.

    `locate` makes one. Its weights are the ones it was judged with: averaged, with adapters merged,
    in their stored precision.

    Attributes:
        folder: Folder of the SavedModels.
        manifest: Its manifest.
    """

    folder: str
    manifest: ModelManifest

    @classmethod
    def locate(cls, folder: str, base_model: BaseModel) -> StartingModel:
        """Reads a model, and checks that a training can start from it.

        Args:
            folder: Folder of the SavedModels and the manifest.
            base_model: The base weights of the training; its latents were made by those networks
                of it that training does not change.

        Raises:
            WeightsError: There is no model, its preset, picture size, prediction or base weights
                differ, or its weights are gone.
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
                f"there is no {MODEL_MANIFEST_NAME} in {folder}: give the Trainer's model, such as "
                "runs/default/artifacts/Trainer/model/7"
            )
        preset, size = base_model.preset.name, base_model.image_size
        if not manifest.fits(preset, size):
            raise WeightsError(
                f"the model in {folder} has preset {manifest.preset!r} at {manifest.image_size} "
                f"pixels, but this training has {preset!r} at {size}: set them to the model's, or "
                "start from another model"
            )
        learned = manifest.prediction, manifest.zero_terminal_snr
        asked = base_model.preset.prediction, base_model.preset.zero_terminal_snr
        if learned != asked:
            raise WeightsError(
                f"the model in {folder} learned to predict {_in_words(*learned)}, but this "
                f"training is for {_in_words(*asked)}: set model.prediction and "
                "model.zero_terminal_snr to the model's, or start from another model"
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
                + ", with which the latents of this training are made: give its own"
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
        """Whether a training continues the adapters of the model, on the base weights.

        Otherwise they are merged, and any new adapters are trained on top of the result.

        Raises:
            UserError: Their shape differs from the adapters to be trained.
        """
        if not config.lora_rank or not self._rank:
            return False
        if self.manifest.started_from and not self.manifest.started_from.get(CONTINUED):
            logger.info(
                "The adapters of the starting model were trained on another model's weights: they "
                "are merged, and new ones are trained."
            )
            return False
        training = self.manifest.training
        where = f"the model in {self.folder}"
        instead = "or training.lora_rank to 0, which trains all weights with the adapters merged"
        for name, value in (("lora_rank", config.lora_rank), ("lora_alpha", config.lora_alpha)):
            own = training.get(name)
            if own != value:
                raise UserError(
                    f"{where} has adapters with training.{name} = {own:g}, which cannot be "
                    f"continued with {value:g}: set training.{name} to {own:g}, {instead}"
                )
        if training.get("train_text_encoder") and not config.train_text_encoder:
            raise UserError(
                f"{where} also has adapters of the text encoder: set training.train_text_encoder "
                f"to true, {instead}"
            )
        return True

    def load(self, model: keras.Model, network: str) -> None:
        """Loads the weights of one network, as they are stored.

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
        """The adapters by name, `down` [width in, rank] and `up` [rank, width out].

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
