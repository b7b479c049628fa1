"""The command `python -m trainer.diffusers_export`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from storage.addresses import SecretInAddressError, check_address
from storage.flags import Command, report
from storage.greetings import no_greetings
from storage.user_errors import UserError
from trainer.presets import preset_names
from trainer.weights.base_model import DEFAULT_WEIGHTS
from trainer.weights.diffusers_layout import DTYPES

_RELEASE = Path("runs/default/serving_model/releases/1.json")


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "trainer.diffusers_export",
        "Writes a model in diffusers' layout of Stable Diffusion v1.x, or as one file.",
        [
            (("--model", _RELEASE, "--output", Path("my-model")), "for diffusers"),
            (("--model", _RELEASE, "--output", Path("my.safetensors")), "for A1111 and ComfyUI"),
        ],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        help="a trained model: the Trainer's model artifact, or the file of a release, such as "
        "runs/default/serving_model/releases/3.json",
    )
    what.add_argument(
        "--preset", choices=preset_names(), help="the base weights of this preset, untrained"
    )
    parser.add_argument(
        "--base-weights",
        help="where the base weights are: a folder, a single file, gs:// or hf:// (default: with "
        "--model, where they were when it was trained; with --preset, where they are published)",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder or gs:// address to write to; if it ends in .safetensors, the model becomes a "
        "single file in the original layout, which A1111 and ComfyUI open",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = command().parse_args(argv)
    try:
        for address in filter(None, (arguments.model, arguments.base_weights, arguments.output)):
            check_address(address)
    except SecretInAddressError as error:
        return report(error)
    # Importing TensorFlow takes seconds; help and wrong commands should not wait for it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with no_greetings():
        from trainer.weights.diffusers_export import export_base_weights, export_trained

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if arguments.model is not None:
            export_trained(
                arguments.model,
                arguments.output,
                base_weights=arguments.base_weights,
                dtype=arguments.dtype,
            )
        else:
            export_base_weights(
                arguments.preset,
                arguments.output,
                base_weights=arguments.base_weights or DEFAULT_WEIGHTS,
                dtype=arguments.dtype,
            )
    except (UserError, OSError) as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
