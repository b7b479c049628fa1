"""The command `python -m trainer.pretrain`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from storage.flags import Command
from storage.greetings import no_greetings
from trainer.presets import preset_names
from trainer.weights.base_model import RANDOM_WEIGHTS


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "trainer.pretrain",
        "Trains a preset's base weights: its autoencoder, then the rest.",
        [(("--preset", "tiny", "--out", Path("weights")), "")],
    )
    parser.add_argument("--preset", choices=preset_names(), default="tiny", help="(default: tiny)")
    parser.add_argument("--out", required=True, help="folder to write the weights to")
    parser.add_argument(
        "--work-dir",
        default="runs/pretrain",
        help="folder of the checkpoints, from which it resumes",
    )
    parser.add_argument(
        "--start", default=RANDOM_WEIGHTS, help="a folder of weights to start from, or random"
    )
    parser.add_argument("--pictures", type=int, default=20_000, help="training pictures to draw")
    parser.add_argument(
        "--autoencoder-steps", type=int, default=4000, help="0 leaves it as it starts"
    )
    parser.add_argument("--autoencoder-batch-size", type=int, default=16)
    parser.add_argument("--diffusion-steps", type=int, default=6000)
    parser.add_argument("--diffusion-batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--min-snr-gamma", type=float, default=0.0, help="0: equal weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = command().parse_args(argv)
    # Importing TensorFlow takes seconds; help and wrong commands should not wait for it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with no_greetings():
        from trainer.pretraining.pretrain import PretrainConfig, pretrain

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    pretrain(PretrainConfig(**vars(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
