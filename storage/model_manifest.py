"""What an exported model says of itself, to whoever finds it: trainer, serving, lineage.

Reading it needs no TensorFlow where it lies on this machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from storage import filesystem

MODEL_MANIFEST_NAME = "manifest.json"
"""The file beside the SavedModels that holds a `ModelManifest`."""


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    """What a model is and how it was made.

    In the file the training's settings stand beside everything else. Former versions wrote fewer
    fields: what a model of theirs does not say is `None`, empty, or what was always so then.

    Attributes:
        preset: Name of the preset.
        image_size: Side of its pictures in pixels.
        size_multiple: What the heights and widths are multiples of that it can be asked for; `None`
            where that is its `image_size` alone.
        training_id: Names what decides the weights; the same for every export of one training.
        training: Fields of the training configuration, and whatever else a later version writes.
        export_weights: What the SavedModels store their weights as.
        compute: What their diffusion model computes in.
        text_encoder_trained: Whether its text encoder is another than that of the base weights.
        word: The fields of a `trainer.text.new_word.NewWord` that it knows; empty for none.
        numerics: How its layers compute; one of `trainer.presets.Numerics`.
        prediction: What its diffusion model predicts; one of `trainer.presets.Prediction`.
        zero_terminal_snr: Whether the last timestep of its noise schedule is noise alone.
        base_weights_source: Where the base weights lay.
        base_weights: For each network, SHA-256 of the base weights (hex).
        latents: `uri` of the latents, and what their own manifest says.
        prior: Where class pictures were trained on beside them: `uri` of their latents, the
            `weight` of their loss, and what the latents' manifest says; empty where none were.
        validation: Prompts of the validation, and how they were drawn.
        prompts_are_captions: Whether those prompts are captions of the dataset.
        defaults: `num_steps`, `guidance_scale` and `sampler` where a request names none.
        parameters: Parameters of each network that is served.
        trainable_parameters: How many of them, or of the adapters, were trained.
        replicas: Devices that trained it together.
        final_loss: Mean over the last steps.
        kept: Where held-out losses were taken while it was trained: `step`, whose weights these
            are, of `steps_done`, and `why`; whether held-out pictures have `chosen` it; and its
            `loss` on `pictures` of them at `timesteps` each.
        started_from: Of the model that its training started from, `training_id`, a digest of its
            `weights`, and whether its adapters were trained on (`adapters_continued`); empty where
            it started from the base weights.
        went_on_from: `training_id` and `step` of the shorter training that it went on from; empty
            where it did all its steps.
        goes_on_from: The step that a longer training would go on from; `None` where it would not.
        tuned: Where a search has found hyperparameters: which it has found.
        images_per_second: Median while it was trained.
        training_seconds: Without preparation and export.
        wall_time_seconds: With them.
        estimated_memory_bytes: What training was thought to take.
        peak_memory_bytes: What the process took of the machine's memory.
        peak_gpu_memory_bytes: What it took of the GPU's; `None` without one.
        code_version: Hash of the code that trained it.
        git_commit: Commit of that code; `None` outside of a git checkout.
        git_changed: Whether files of that commit were changed, so that it is not all of the code.
        versions: Python's, and those of the packages that matter.
        processor: What trained it, of `storage.machine.processor`, and the GPUs, if any.
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
        """From what a manifest holds, as `json` reads it; raises a KeyError if it is none."""
        own = {field.name for field in dataclasses.fields(cls)} - {"training"}
        return cls(
            preset=content["preset"],
            image_size=content["image_size"],
            training={name: value for name, value in content.items() if name not in own},
            **{n: content[n] for n in own - {"preset", "image_size"} if n in content},
        )

    @classmethod
    def read(cls, folder: str) -> ModelManifest:
        """Reads the manifest in the folder of the SavedModels; raises an OSError without one."""
        path = filesystem.join(folder, MODEL_MANIFEST_NAME)
        return cls.from_json(json.loads(filesystem.read_bytes(path)))

    @classmethod
    def find(cls, folder: str) -> ModelManifest | None:
        """Reads it as `read` does; `None` where there is none."""
        there = filesystem.is_file(filesystem.join(folder, MODEL_MANIFEST_NAME))
        return cls.read(folder) if there else None

    @classmethod
    def of_release(cls, facts: Mapping[str, Any]) -> ModelManifest | None:
        """What the pusher copied into a release; `None` where it says nothing of its model."""
        return cls.from_json(facts["manifest"]) if "manifest" in facts else None

    @property
    def chosen(self) -> bool:
        """Whether held-out pictures have chosen its step or its hyperparameters."""
        return bool(self.kept.get("chosen") or self.tuned)

    def fits(self, preset: str, image_size: int) -> bool:
        """Whether models of this preset and size can be compared with the model."""
        return (self.preset, self.image_size) == (preset, image_size)

    def write(self, folder: str) -> None:
        """Writes it into the folder of the SavedModels."""
        content = {**vars(self), **self.training}
        del content["training"]
        filesystem.write_bytes(
            filesystem.join(folder, MODEL_MANIFEST_NAME),
            json.dumps(content, indent=2, sort_keys=True).encode(),
        )
