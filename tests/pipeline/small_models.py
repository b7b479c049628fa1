"""Models as the Trainer leaves them, but for their weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from storage.model_manifest import ModelManifest
from trainer.presets import NETWORKS


def write_model(folder: Path, **facts: Any) -> Path:
    """A model's artifact, but for the weights themselves."""
    export = folder / "Format-Serving"
    for network in ("diffusion_model", "text_encoder"):
        (export / network).mkdir(parents=True)
        (export / network / "saved_model.pb").write_bytes(network.encode())
    manifest = ModelManifest(
        "tiny",
        128,
        training_id=folder.name,
        base_weights=dict.fromkeys(NETWORKS, "random"),
        base_weights_source="random",
    )
    dataclasses.replace(manifest, **facts).write(str(export))
    return folder
