"""Draws pictures: `python -m serving.generate "a drawing of a blue creature" --out x.png`.

Needs TensorFlow and the folder that the pipeline pushed to, or the address of a TensorFlow Serving
that serves it, and Pillow to write marks into pictures; none of the packages that the models were
built with. Mistakes in a request are reported before TensorFlow is imported.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving import marking, seals, which_models
from serving.client import RETRIES, TIMEOUT_SECONDS, Generator, no_image_encoder
from serving.errors import ServingError, check_place
from serving.releases import IMAGE_ENCODER
from serving.request import SAMPLERS, check_multiples, check_prompts, check_request, cut_note
from storage import filesystem, progress
from storage.flags import Command, report
from storage.picture_marks import Marks

MAX_COUNT = 100
_PROMPT = "a drawing of a round blue creature with horns"


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.generate",
        "Draws pictures with the models that the pipeline has pushed.",
        [
            ((_PROMPT, "--out", Path("creature.png")), ""),
            (
                (_PROMPT, "--count", "4", "--seed", "7", "--out", Path("four.png")),
                "four pictures side by side, with the seeds 7 to 10",
            ),
            (
                (_PROMPT, "--server", "http://127.0.0.1:8501", "--out", Path("creature.png")),
                "drawn by a TensorFlow Serving",
            ),
        ],
        notes="With several prompts or --count, OUT is one grid: a row per prompt, a column per\n"
        "seed. The same prompt, seed, steps, guidance scale and sampler give the same picture,\n"
        "alone or in a grid. Another height or width gives another picture. --image is scaled to\n"
        "cover the height and width, and cropped to them.",
        takes_version=True,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument("--out", required=True, help="the PNG file to write")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to avoid")
    parser.add_argument(
        "--steps", type=int, help="sampling steps, 1 to 1000 (default: the release's, or else 25)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="how strictly to follow the prompt, 0 or more; 1 is no guidance (default: the "
        "release's, or else 7.5)",
    )
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"how to remove the noise: {', '.join(SAMPLERS)} (default: the release's, or else "
        "ddim)",
    )
    for side in ("height", "width"):
        parser.add_argument(
            f"--{side}",
            type=int,
            metavar="PIXELS",
            help="(default: the size that the release was trained at)",
        )
    parser.add_argument(
        "--image", metavar="FILE", help="a picture to draw from (the release must support it)"
    )
    parser.add_argument(
        "--strength",
        type=float,
        metavar="PART",
        help="how much of --image may change: the part of the steps that is made, from 0 to 1, "
        "which begins with pure noise (default: 0.8, or 1 with --mask)",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="a picture of the same size as --image: white areas are drawn anew, and no pixel "
        "changes in black areas",
    )
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        metavar="N",
        help="how many pictures to draw at once, as far as memory allows: faster, with different "
        "rounding (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--count",
        type=int,
        default=1,
        help=f"pictures per prompt, with the seeds from --seed on, 1 to {MAX_COUNT} (default: 1)",
    )
    which_models.add_arguments(parser)
    marking.add_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="the longest that one call to a server may take (default: %(default)g)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=RETRIES,
        help="how often to retry if a server is busy or not there (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake in the request."""
    arguments = command().parse_args(argv)
    # Only effective before the first import of TensorFlow, which reads it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        checked = _check(arguments)
        with progress.on_screen():
            _generate(arguments, *checked)
    except (ServingError, OSError) as error:
        return report(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _check(
    arguments: argparse.Namespace,
) -> tuple[marking.Marking, np.ndarray | None, np.ndarray | None]:
    """Checks all that can be checked without TensorFlow, and says what takes a while.

    Returns:
        How to mark pictures, the picture to draw from, and its mask.
    """
    marking.of(arguments)
    check_prompts(arguments.prompts)
    if not 1 <= arguments.count <= MAX_COUNT:
        raise ServingError(f"--count is {arguments.count}; it must be 1 to {MAX_COUNT}")
    if not 1 <= arguments.together <= MAX_COUNT:
        raise ServingError(f"--together is {arguments.together}; it must be 1 to {MAX_COUNT}")
    check_request(
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        seeds=[arguments.seed, arguments.seed + arguments.count - 1],
        sampler=arguments.sampler,
        height=arguments.height,
        width=arguments.width,
        strength=arguments.strength,
    )
    if not arguments.out.lower().endswith(".png"):
        raise ServingError(f"--out is {arguments.out}; its name must end in .png")
    pictures = list(filter(None, (arguments.image, arguments.mask)))
    places = (arguments.out, which_models.address(arguments), *pictures)
    for place in places:
        check_place(place)
    # Even a look there takes seconds.
    if is_far := any(map(filesystem.is_remote, places)):
        _say_loading(arguments)
    folder = filesystem.parent(arguments.out)
    if not filesystem.is_folder(folder):
        raise ServingError(f"the folder of --out, {folder}, does not exist; make it first")
    if filesystem.is_folder(arguments.out):
        raise ServingError(f"--out is {arguments.out}, which is a folder; name a file")
    release = which_models.check(arguments)
    if release is not None:
        if release.size_multiple is not None:
            check_multiples(arguments.height, arguments.width, release.size_multiple)
        release.check_complete()
        if pictures and IMAGE_ENCODER not in release.networks:
            raise no_image_encoder(which_models.address(arguments), release)
    marked = marking.of(arguments, release)
    image, mask = _read_pictures(arguments)
    if release is not None and not is_far:
        _say_loading(arguments)
    return marked, image, mask


def _read_pictures(
    arguments: argparse.Namespace,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if (arguments.image, arguments.mask, arguments.strength) == (None, None, None):
        return None, None
    # Imports Pillow.
    from serving.pictures import Original, read_mask, read_picture

    image = None if arguments.image is None else read_picture(arguments.image)
    mask = None if arguments.mask is None else read_mask(arguments.mask)
    Original.of(image, arguments.strength, mask)
    return image, mask


def _say_loading(arguments: argparse.Namespace) -> None:
    if arguments.server is not None:
        print(f"Asking {arguments.server} ...", flush=True)
        return
    if arguments.model is not None:
        print(f"Loading {arguments.model} ...", flush=True)
        return
    which = "the release" if arguments.version is None else f"release {arguments.version}"
    print(f"Loading {which} in {arguments.serving_dir} ...", flush=True)


def _generate(
    arguments: argparse.Namespace,
    marked: marking.Marking,
    image: np.ndarray | None,
    mask: np.ndarray | None,
) -> None:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    address = which_models.address(arguments)
    generator = Generator(
        address,
        arguments.version,
        timeout_seconds=arguments.timeout,
        retries=arguments.retries,
        memory_limit_bytes=which_models.memory_limit_bytes(arguments),
        verification=seals.of(arguments),
    )
    seeds = [arguments.seed + index for index in range(arguments.count)]
    requests = [(prompt, seed) for prompt in arguments.prompts for seed in seeds]

    def tell(index: int, _: np.ndarray) -> None:
        if len(requests) > 1:
            prompt, seed = requests[index]
            print(f"drew {prompt!r}, seed {seed}", flush=True)

    def tell_cut(prompt: str, cut: str | None) -> None:
        print(f"note: {cut_note(prompt, cut)}", file=sys.stderr, flush=True)

    marks: list[Marks] = []
    pictures = generator.generate(
        [prompt for prompt, _ in requests],
        arguments.negative_prompt,
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        sampler=arguments.sampler,
        height=arguments.height,
        width=arguments.width,
        image=image,
        strength=arguments.strength,
        mask=mask,
        seed=[seed for _, seed in requests],
        together=arguments.together,
        on_picture=tell,
        on_marks=marks.append,
        on_cut=tell_cut,
    )
    _, height, width, _ = pictures.shape
    rows = pictures.reshape(len(arguments.prompts), len(seeds), height, width, 3)
    grid = rows.transpose(0, 2, 1, 3, 4).reshape(len(rows) * height, len(seeds) * width, 3)
    try:
        filesystem.write_bytes(arguments.out, marked.encode(grid, marks, columns=len(seeds)))
    except OSError as error:
        raise ServingError(f"{arguments.out} cannot be written: {error}") from error
    height, width, _ = grid.shape
    drawn_with = address if arguments.model else f"release {generator.version} of {address}"
    print(f"{arguments.out}: {width} x {height} pixels, {drawn_with}")


if __name__ == "__main__":
    sys.exit(main())
