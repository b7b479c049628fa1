"""Releases of a network of a few thousand parameters, exported and published for real."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

IMAGE_SIZE = 64
DEFAULTS = {"num_steps": 2, "guidance_scale": 3.0}


def export(folders: dict[int, Path]) -> None:
    """Writes the Trainer's `Format-Serving` of models that differ in all networks.

    They draw from pictures, too, and from text alone without the folder of the image encoder.
    """
    import small_runs

    from serving.releases import IMAGE_ENCODER, SERVED_NETWORKS
    from trainer.export.saved_models import export_models, serving_modules
    from trainer.weights.base_model import BaseModel

    preset = small_runs.preset()
    base_model = BaseModel.locate(preset, IMAGE_SIZE, "random")
    networks = {n: base_model.build(n) for n in (*SERVED_NETWORKS, IMAGE_ENCODER)}
    modules = serving_modules(**networks, preset=preset, image_size=IMAGE_SIZE)
    for number, folder in folders.items():
        for model in networks.values():
            rng = np.random.default_rng(number)
            # Large enough to show in the pictures.
            model.set_weights(
                [w + rng.normal(0, 0.05, w.shape).astype(w.dtype) for w in model.get_weights()]
            )
        export_models(str(folder), modules, f"training {number}")
        manifest = {
            "preset": "tiny",
            "training_id": f"training {number}",
            "image_size": IMAGE_SIZE,
            "size_multiple": preset.size_multiple,
            "defaults": DEFAULTS,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))


def publish(root: Path | str, number: int, folder: Path, batch_size: int = 1) -> int:
    """Publishes what `export` wrote, as the pusher does; gives its version."""
    from components.serving_pusher.batching import batching_parameters
    from serving.serving_directory import ServingDirectory

    facts = {
        "model": {"id": number, "uri": f"model-{number}"},
        "preset": "tiny",
        "image_size": IMAGE_SIZE,
        "defaults": DEFAULTS,
        "metrics": {"loss": 0.1602, "loss_baseline": 0.2037},
        "pushed_at": "2026-11-25T12:00:00+00:00",
        "manifest": json.loads((folder / "manifest.json").read_bytes()),
    }
    directory = ServingDirectory(str(root))
    in_batches = batch_size > 1
    return directory.publish(
        str(folder),
        facts,
        lambda staged: None,
        _warmup(folder, in_batches),
        batching=batching_parameters(batch_size) if in_batches else None,
    )["version"]


@functools.cache
def _warmup(folder: Path, in_batches: bool) -> dict[str, bytes]:
    from components.serving_pusher.warmup import warmup_requests
    from serving.serving_directory import networks_in

    names = networks_in(str(folder))
    return {
        name: warmup_requests(str(folder / name), name, IMAGE_SIZE, in_batches=in_batches)
        for name in names
    }
