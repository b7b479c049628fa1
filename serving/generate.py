"""Draws pictures: `python -m serving.generate "a drawing of a blue creature" --out x.png`.

Needs TensorFlow and the folder that the pipeline pushed to, and nothing that the models were
built with. Mistakes in what was asked for are reported before TensorFlow is imported.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from serving import storage
from serving.errors import ServingError
from serving.releases import NETWORKS, find_release
from serving.request import check_request

DEFAULT_SERVING_DIR = os.path.join("runs", "default", "serving_model")
MAX_COUNT = 100
_BAD_REQUEST = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Without the usage that argparse prints in front: one line that says what is wrong.
        self.exit(_BAD_REQUEST, f"error: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m serving.generate",
        description="Draws pictures with the models that the pipeline has pushed.",
        epilog="With several prompts or --count, OUT is one grid: a row per prompt, a column per "
        "seed. The same prompt, seed, steps and guidance scale give the same picture, alone or in "
        "a grid.",
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument("--out", required=True, help="the PNG file to write")
    parser.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what to keep away from"
    )
    parser.add_argument(
        "--steps", type=int, help="sampling steps, 1 to 1000 (default: the release's, else 25)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="how strictly to follow the prompt, 0 or more; 1 is no guidance (default: the "
        "release's, else 7.5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--count",
        type=int,
        default=1,
        help=f"pictures per prompt, with the seeds from --seed on, 1 to {MAX_COUNT} (default: 1)",
    )
    parser.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the folder that the pipeline pushes to, local or gs:// (default: %(default)s)",
    )
    parser.add_argument("--version", type=int, help="the release to use (default: the newest)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake in the request."""
    arguments = _parser().parse_args(argv)
    # Only effective before the first import of TensorFlow, which reads it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        _check(arguments)
        _generate(arguments)
    except (ServingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_REQUEST
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Finds whatever can be found wrong without TensorFlow."""
    if not 1 <= arguments.count <= MAX_COUNT:
        raise ServingError(f"--count is {arguments.count}; it must be 1 to {MAX_COUNT}")
    check_request(
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        seeds=[arguments.seed, arguments.seed + arguments.count - 1],
    )
    if not arguments.out.lower().endswith(".png"):
        raise ServingError(f"--out is {arguments.out}; its name must end in .png")
    folder = storage.parent(arguments.out)
    if not storage.is_folder(folder):
        raise ServingError(f"the folder of --out, {folder}, does not exist; make it first")
    if storage.is_folder(arguments.out):
        raise ServingError(f"--out is {arguments.out}, which is a folder; name a file")
    release = find_release(arguments.serving_dir, arguments.version)
    for network in NETWORKS:
        release.model_folder(network)


def _generate(arguments: argparse.Namespace) -> None:
    import numpy as np
    import tensorflow as tf

    from serving.client import Generator

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    generator = Generator(arguments.serving_dir, arguments.version)
    seeds = [arguments.seed + index for index in range(arguments.count)]
    rows = []
    for prompt in arguments.prompts:
        row = []
        for seed in seeds:
            picture = generator.generate(
                [prompt],
                arguments.negative_prompt,
                num_steps=arguments.steps,
                guidance_scale=arguments.guidance_scale,
                seed=seed,
            )[0]
            row.append(picture)
            if len(arguments.prompts) * len(seeds) > 1:
                print(f"drew {prompt!r}, seed {seed}", flush=True)
        rows.append(np.concatenate(row, axis=1))
    grid = np.concatenate(rows, axis=0)
    try:
        storage.write_bytes(arguments.out, tf.io.encode_png(grid).numpy())
    except OSError as error:
        raise ServingError(f"{arguments.out} cannot be written: {error}") from error
    height, width, _ = grid.shape
    print(
        f"{arguments.out}: {width} x {height} pixels, release {generator.release.version} of "
        f"{arguments.serving_dir}"
    )


if __name__ == "__main__":
    sys.exit(main())
