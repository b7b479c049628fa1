"""Our networks compared with PyTorch's: `python -m benchmarks.weights --checkpoint FOLDER`.

`reference.py` makes the folder. Prints a table with the relative error of each network, that is,
the norm of the difference over the norm of PyTorch's output, in the exact form and in KerasCV's.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.presets import NETWORKS, Numerics, Preset, get_preset, preset_names

FORMS: tuple[Numerics, ...] = ("diffusers", "keras_cv")


def relative_error(
    checkpoint: Path, reference: Mapping[str, np.ndarray], preset: Preset, network: str
) -> float:
    """How far one of our networks is from PyTorch's.

    Args:
        checkpoint: Folder in diffusers' layout.
        reference: The arrays that `reference.py` stored.
        preset: The preset; its `numerics` decides the form.
        network: Which of the four networks.

    Returns:
        The norm of the difference over the norm of PyTorch's output.
    """
    # These import Keras.
    from storage.folders import open_folder
    from trainer.diffusion.noise_schedule import timestep_embedding
    from trainer.networks import (
        build_decoder,
        build_diffusion_model,
        build_image_encoder,
        build_text_encoder,
    )
    from trainer.weights.diffusers_format import load_tensors
    from trainer.weights.diffusers_layout import network_files

    def given(name: str) -> np.ndarray:
        values = reference[f"{network}/{name}"]
        # PyTorch has channels first.
        return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values

    expected = given("output")
    inputs: object
    if network == "text_encoder":
        model, inputs = build_text_encoder(preset), given("tokens").astype(np.int32)
    elif network == "image_encoder":
        model, inputs = build_image_encoder(preset), given("image")
    elif network == "decoder":
        model, inputs = build_decoder(preset, expected.shape[1]), given("latent")
    else:
        latent = given("latent")
        model = build_diffusion_model(preset, 8 * latent.shape[1])
        width = preset.diffusion_model.timestep_width
        embedding = timestep_embedding(given("timesteps").astype(np.int32), width)
        inputs = [latent, embedding.numpy(), given("context")]
    if single := checkpoint.is_file():
        paths = [checkpoint]
    else:
        names = network_files(open_folder(str(checkpoint)), network)
        paths = [checkpoint / name for name in names]
    load_tensors(model, network, paths, [path.name for path in paths], original=single)
    output = np.asarray(model(inputs, training=False))
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weights", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--preset", choices=preset_names(), default="sd-v1-4")
    arguments = parser.parse_args(argv)
    preset = get_preset(arguments.preset)
    reference = np.load(arguments.checkpoint / "reference.npz")
    print("| network | exact form | KerasCV's form |\n| --- | --- | --- |")
    for network in NETWORKS:
        errors = [
            relative_error(
                arguments.checkpoint, reference, dataclasses.replace(preset, numerics=form), network
            )
            for form in FORMS
        ]
        print(f"| {network} | " + " | ".join(f"{error:.1e}" for error in errors) + " |", flush=True)
    return 0


if __name__ == "__main__":
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
