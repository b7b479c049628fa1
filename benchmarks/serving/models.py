"""Writes the models: weights for KerasCV, our export, and the export of the published notebook."""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from benchmarks.serving.measured import PROMPT, VERSION, arguments
from benchmarks.serving.notebook import export_notebook_models
from trainer.export.saved_models import export_models, serving_modules
from trainer.presets import get_preset
from trainer.text.tokenizer import merges, tokenize
from trainer.weights.base_model import BaseModel


def main() -> None:
    """The command line."""
    preset_name, image_size, folder, _ = arguments()
    preset = get_preset(preset_name)
    source = "default" if preset.ships_weights else "random"
    base_model = BaseModel.locate(preset, image_size, source)
    networks = {
        name: base_model.build(name) for name in ("text_encoder", "diffusion_model", "decoder")
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in networks.items():
        model.save_weights(str(folder / f"{name}.weights.h5"))
    np.save(folder / "tokens.npy", tokenize([PROMPT, ""]).astype(np.int64))
    for target, dtype in (("ours", "float32"), ("ours_bfloat16", "bfloat16")):
        modules = serving_modules(
            **networks,
            preset=preset,
            image_size=image_size,
            weights_dtype=dtype,
            compute=dtype,
        )
        export_models(str(folder / "exported"), modules)
        for name in networks:
            # As in a serving directory.
            (folder / target / name).mkdir(parents=True, exist_ok=True)
            (folder / "exported" / name).rename(folder / target / name / str(VERSION))
    export_notebook_models(folder / "notebook", networks, preset, image_size)
    write_merges(str(folder / "merges.txt.gz"))
    (folder / "done").touch()
    print(json.dumps({"tensorflow": tf.__version__}))


def write_merges(path: str) -> None:
    """Writes the vocabulary in the form that KerasCV's tokenizer reads."""
    import gzip

    from keras_cv.src.models.stable_diffusion.clip_tokenizer import bytes_to_unicode

    names = list(bytes_to_unicode().values())
    names += [f"{name}</w>" for name in names]
    lines = ["#version: 0.2"]
    for left, right in merges():
        lines.append(f"{names[left]} {names[right]}")
        names.append(names[left] + names[right])
    with gzip.open(path, "wt", encoding="utf-8") as f:
        f.write("\n".join(lines))


if __name__ == "__main__":
    main()
