"""Trains the base weights of `tiny`: `python -m trainer.pretraining --help`.

Needs the environment of `trainer/pretraining/requirements.txt`, a GPU to finish in minutes, and the
archives that `npm pack` fetches: @iconify-json/noto, noto-v1, fluent-emoji-flat and fxemoji.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch

from storage.folders import HASHES_NAME
from storage.transfer import sha256_of
from trainer.presets import get_preset
from trainer.pretraining import shapes
from trainer.pretraining.icons import SIZE, read_icons
from trainer.pretraining.training import Budget, Pretraining, facts_of

_PRESET = "tiny"
_SHAPES_SEED = 7


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.manual_seed(arguments.seed)
    # Before PyTorch starts its own threads, which would not survive a fork.
    icons = read_icons(arguments.icons)
    with multiprocessing.Pool() as pool:
        drawn = pool.map(_shape, range(arguments.shapes), 64)
    logging.info("%d icons, %d shapes", len(icons.names), len(drawn))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = np.stack([picture for picture, _ in drawn])
    training = Pretraining(get_preset(_PRESET), icons, pictures, device)
    goes_on = arguments.start is not None
    if goes_on:
        training.load(arguments.start)
    autoencoder = Budget(
        seconds=arguments.autoencoder_seconds,
        batch_size=arguments.autoencoder_batch_size,
        learning_rate=arguments.autoencoder_learning_rate,
        warmup_steps=100,
        ema_decay=0.999,
    )
    diffusion = Budget(
        seconds=arguments.diffusion_seconds,
        batch_size=arguments.diffusion_batch_size,
        learning_rate=arguments.diffusion_learning_rate,
        warmup_steps=100 if goes_on else 500,
        ema_decay=0.999 if goes_on else 0.9995,
    )
    autoencoder_steps = training.train_autoencoder(autoencoder, goes_on=goes_on)
    if arguments.standardize or not goes_on:
        training.standardize_latents()
    data = training.captioned_latents(
        [caption for _, caption in drawn], arguments.variants, arguments.variants_with_parts
    )
    if arguments.compile:
        training.unet.compile()
    out = str(arguments.out)
    diffusion_steps = training.train_diffusion(data, diffusion, lambda: training.save(out))
    training.save(arguments.out)
    facts = facts_of(
        {key: value for key, value in vars(arguments).items() if key not in ("out", "icons")},
        autoencoder=dataclasses.asdict(autoencoder) | {"steps": autoencoder_steps},
        diffusion=dataclasses.asdict(diffusion) | {"steps": diffusion_steps},
        psnr_of_icons_db=training.psnr(training.held_scenes()),
        noise_prediction_loss=training.loss_of(data),
    )
    Path(arguments.out, "training.json").write_text(facts, encoding="utf-8")
    files = sorted(Path(arguments.out).glob("*/*.safetensors"))
    hashes = [f"{sha256_of(file)}  {file.relative_to(arguments.out)}\n" for file in files]
    Path(arguments.out, HASHES_NAME).write_text("".join(hashes), encoding="utf-8")
    logging.info("done: %s", facts)
    return 0


def _shape(index: int) -> tuple[np.ndarray, str]:
    return shapes.draw(_SHAPES_SEED, index, SIZE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.pretraining",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--icons", required=True, help="folder with the archives of the packages")
    parser.add_argument("--out", required=True, help="folder to write the weights to, at the end")
    parser.add_argument("--start", help="folder of weights to start from, instead of random ones")
    parser.add_argument("--shapes", type=int, default=30_000, help="pictures of shapes to draw")
    parser.add_argument("--variants", type=int, default=24, help="scenes of each named icon")
    parser.add_argument(
        "--variants-with-parts", type=int, default=24, help="scenes of each thing with parts on it"
    )
    parser.add_argument(
        "--standardize", action="store_true", help="bring latents to variance 1 again, with --start"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the diffusion model first; takes minutes"
    )
    parser.add_argument("--autoencoder-seconds", type=float, default=150)
    parser.add_argument("--autoencoder-batch-size", type=int, default=64)
    parser.add_argument("--autoencoder-learning-rate", type=float, default=1e-3)
    parser.add_argument("--diffusion-seconds", type=float, default=285)
    parser.add_argument("--diffusion-batch-size", type=int, default=512)
    parser.add_argument("--diffusion-learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
