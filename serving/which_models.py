"""The part of the command line that says which models to draw with."""

from __future__ import annotations

import argparse
import math

from serving import seals
from serving.client import is_server
from serving.errors import ServingError, check_place
from serving.releases import DEFAULT_SERVING_DIR, Release, find_model, find_release
from serving.remote import SERVERS_MEMORY_BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which models, `--memory-limit`, and whether a release is verified."""
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
        help="a model that is no release instead, as the Trainer leaves it: "
        "<output>/artifacts/Trainer/model/<number>",
    )
    where.add_argument(
        "--server",
        metavar="ADDRESS",
        help="a TensorFlow Serving instead: http://HOST:8501 (REST) or grpc://HOST:8500, https and "
        "grpcs with TLS",
    )
    parser.add_argument("--version", type=int, help="the release to use (default: the current one)")
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="what a picture may take besides the models: a height and width that need more are "
        f"refused (default: what is free; of a server {SERVERS_MEMORY_BYTES / 1e9:g})",
    )
    seals.add_arguments(parser)


def check(arguments: argparse.Namespace) -> Release | None:
    """The release or model that was asked for; `None` for a server, which is not asked.

    Raises:
        ServingError: There is no such thing, or what is given is no server's address, or has a
            secret in it, or no memory is allowed, or what is to be verified cannot be.
    """
    memory_limit_bytes(arguments)
    verification = seals.of(arguments)
    if verification.signature and (arguments.model or arguments.server):
        raise ServingError(
            "--verify and a key are for a release in a --serving-dir: a model that is none has no "
            "signature, and what a server has loaded is verified where it runs, by python -m "
            "serving.releases verify --loaded"
        )
    if arguments.model is not None:
        if arguments.version is not None:
            raise ServingError("--model names one model, which has no --version: leave that out")
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
    """What was allowed; `None` where nothing was said.

    Raises:
        ServingError: It is no amount of memory.
    """
    limit = arguments.memory_limit
    if limit is None:
        return None
    if not 0 < limit < math.inf:
        raise ServingError(f"--memory-limit is {limit:g}; it must be gigabytes, more than 0")
    return math.ceil(limit * 1e9)


def address(arguments: argparse.Namespace) -> str:
    """Where they are."""
    where: str = arguments.server or arguments.model or arguments.serving_dir
    return where
