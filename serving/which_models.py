"""The flags that decide which models to draw with."""

from __future__ import annotations

import argparse
import math

from serving import seals
from serving.client import is_server
from serving.errors import ServingError, check_place
from serving.releases import DEFAULT_SERVING_DIR, Release, find_model, find_release
from serving.remote import SERVERS_MEMORY_BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the models, `--memory-limit`, and the verification of a release."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the folder that the pipeline pushes to, local or gs:// (default: %(default)s)",
    )
    where.add_argument(
        "--model",
        metavar="FOLDER",
        help="use a model that is not a release instead, as the Trainer leaves it: "
        "<output>/artifacts/Trainer/model/<number>",
    )
    where.add_argument(
        "--server",
        metavar="ADDRESS",
        help="use a TensorFlow Serving instead: http://HOST:8501 (REST) or grpc://HOST:8500, https "
        "and grpcs with TLS",
    )
    parser.add_argument("--version", type=int, help="the release to use (default: the current one)")
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="the memory that a picture may take besides the models; a height and width that need "
        f"more are refused (default: what is free; {SERVERS_MEMORY_BYTES / 1e9:g} on a server)",
    )
    seals.add_arguments(parser)


def check(arguments: argparse.Namespace) -> Release | None:
    """The release or model that the flags name; `None` for a server, which is not contacted.

    Raises:
        ServingError: There is no such release or model, the address is not that of a server or has
            a secret in it, no memory is allowed, or the verification is impossible.
    """
    memory_limit_bytes(arguments)
    verification = seals.of(arguments)
    if verification.signature and (arguments.model or arguments.server):
        raise ServingError(
            "--verify and a key only work for a release in a --serving-dir: a --model has no "
            "signature, and the release of a --server is verified where it runs, by python -m "
            "serving.releases verify --loaded"
        )
    if arguments.model is not None:
        if arguments.version is not None:
            raise ServingError("--model names one model, which has no version: leave --version out")
        return find_model(arguments.model)
    if arguments.server is None:
        return find_release(arguments.serving_dir, arguments.version)
    check_place(arguments.server)
    if not is_server(arguments.server):
        raise ServingError(
            f"--server is {arguments.server}; it must be http://HOST:PORT or grpc://HOST:PORT"
        )
    return None


def memory_limit_bytes(arguments: argparse.Namespace) -> int | None:
    """The memory that the flags allow; `None` if they name no limit.

    Raises:
        ServingError: It is not an amount of memory.
    """
    limit = arguments.memory_limit
    if limit is None:
        return None
    if not 0 < limit < math.inf:
        raise ServingError(f"--memory-limit is {limit:g}; it must be more than 0, in gigabytes")
    return math.ceil(limit * 1e9)


def address(arguments: argparse.Namespace) -> str:
    """The address of the models."""
    where: str = arguments.server or arguments.model or arguments.serving_dir
    return where
