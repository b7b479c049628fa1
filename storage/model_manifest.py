"""The manifest of an exported model, read by trainer, serving and lineage.

Reading it does not need TensorFlow if it is on this machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from storage import filesystem

MODEL_MANIFEST_NAME = "manifest.json"
"""The file beside the SavedModels with a `ModelManifest`."""


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    """What a model is and how it was made.

    In the file, the training settings are on the top level with all other fields. Former versions
    wrote fewer fields: a field that their models lack is `None`, empty, or has the value that was
    fixed at the time.

    Attributes:
        preset: Name of the preset.
        image_size: Side of its pictures in pixels.
        size_multiple: Heights and widths of requests must be multiples of this; `None` if only its
            `image_size` is possible.
        training_id: Names what decides the weights; the same for every export of one training.
        training: Fields of the training configuration, and any fields of later versions.
        export_weights: The type in which the SavedModels store their weights.
        compute: The type in which their diffusion model computes.
        text_encoder_trained: Whether its text encoder differs from the base weights.
        word: The fields of a `trainer.text.new_word.NewWord` that it knows; empty for none.
        numerics: How its layers compute; one of `trainer.presets.Numerics`.
        prediction: What its diffusion model predicts; one of `trainer.presets.Prediction`.
        zero_terminal_snr: Whether the last timestep of its noise schedule is pure noise.
        base_weights_source: Where the base weights came from.
        base_weights: For each network, SHA-256 of the base weights (hex).
        latents: `uri` of the latents, and the contents of their manifest.
        prior: If it was also trained on class pictures: `uri` of their latents, the `weight` of
            their loss, and the contents of the latents' manifest; otherwise empty.
        validation: Prompts of the validation, and how they were drawn.
        prompts_are_captions: Whether those prompts are captions of the dataset.
        defaults: `num_steps`, `guidance_scale` and `sampler` for requests that do not set them.
        parameters: Number of parameters of each served network.
        trainable_parameters: How many of them, or of the adapters, were trained.
        replicas: Devices that trained it together.
        final_loss: Mean over the last steps.
        kept: If held-out losses were computed during training: the `step` of these weights, out of
            `steps_done`, and `why`; whether held-out pictures have `chosen` it; and its `loss` on
            `pictures` of them at `timesteps` each.
        started_from: `training_id` of the model that its training started from, a digest of that
            model's `weights`, and whether its adapters were trained further
            (`adapters_continued`); empty if it started from the base weights.
        went_on_from: `training_id` and `step` of the shorter training that it continued; empty if
            it did all its steps itself.
        goes_on_from: The step from which a longer training would continue; `None` if it would not.
        tuned: The hyperparameters that a search has found, if there was a search.
        images_per_second: Median during training.
        training_seconds: Time without preparation and export.
        wall_time_seconds: Time with preparation and export.
        estimated_memory_bytes: Estimated memory for training.
        peak_memory_bytes: Peak memory of the process.
        peak_gpu_memory_bytes: Peak memory on the GPU; `None` without a GPU.
        code_version: Hash of the code that trained it.
        git_commit: Commit of that code; `None` outside a git checkout.
        git_changed: Whether files had changed since that commit, so that it is not the whole code.
        versions: Versions of Python and of the packages that matter.
        processor: What trained it: `storage.machine.processor`, and the GPUs, if any.
    """

    preset: str
    image_size: int
    size_multiple: int | None = None
    training_id: str | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    export_weights: str | None = None
    compute: str = "float32"
    text_encoder_trained: bool = False
    word: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numerics: str = "keras_cv"
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False
    base_weights_source: str | None = None
    base_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prior: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompts_are_captions: bool = True
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    trainable_parameters: int | None = None
    replicas: int | None = None
    final_loss: float | None = None
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    started_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    went_on_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    goes_on_from: int | None = None
    tuned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images_per_second: float | None = None
    training_seconds: float | None = None
    wall_time_seconds: float | None = None
    estimated_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    code_version: str | None = None
    git_commit: str | None = None
    git_changed: bool | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    processor: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelManifest:
        """Makes a manifest from parsed JSON; raises a KeyError if it is not a manifest."""
        own = {field.name for field in dataclasses.fields(cls)} - {"training"}
        return cls(
            preset=content["preset"],
            image_size=content["image_size"],
            training={name: value for name, value in content.items() if name not in own},
            **{n: content[n] for n in own - {"preset", "image_size"} if n in content},
        )

    @classmethod
    def read(cls, folder: str) -> ModelManifest:
        """Reads the manifest in the folder of the SavedModels; raises an OSError if missing."""
        path = filesystem.join(folder, MODEL_MANIFEST_NAME)
        return cls.from_json(json.loads(filesystem.read_bytes(path)))

    @classmethod
    def find(cls, folder: str) -> ModelManifest | None:
        """As `read`, but returns `None` if there is no manifest."""
        there = filesystem.is_file(filesystem.join(folder, MODEL_MANIFEST_NAME))
        return cls.read(folder) if there else None

    @classmethod
    def of_release(cls, facts: Mapping[str, Any]) -> ModelManifest | None:
        """The manifest that the pusher copied into a release; `None` if there is none."""
        return cls.from_json(facts["manifest"]) if "manifest" in facts else None

    @property
    def chosen(self) -> bool:
        """Whether held-out pictures have chosen its step or its hyperparameters."""
        return bool(self.kept.get("chosen") or self.tuned)

    def fits(self, preset: str, image_size: int) -> bool:
        """Whether models of this preset and size can be compared with this model."""
        return (self.preset, self.image_size) == (preset, image_size)

    def write(self, folder: str) -> None:
        """Writes the manifest into the folder of the SavedModels."""
        content = {**vars(self), **self.training}
        del content["training"]
        filesystem.write_bytes(
            filesystem.join(folder, MODEL_MANIFEST_NAME),
            json.dumps(content, indent=2, sort_keys=True).encode(),
        )
