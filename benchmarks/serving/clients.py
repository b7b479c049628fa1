"""Pictures per second for one client and for several at once, from a server that batches requests.

    python -m benchmarks.serving.clients runs/bench_serving/tiny

measures the models that `make bench-serving` left there, behind the server of the tests, which
speaks TensorFlow Serving's protocol and makes batches like it. Each client requests one picture
after another over gRPC, each with its own prompt and seed. The server and the clients run in
separate processes. Both arrangements of the server, with batches and without, take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT
from benchmarks.serving.measured import VERSION
from components.serving_pusher.batching import batching_parameters
from serving.client import Generator
from serving.releases import SERVED_NETWORKS

_CONFIG = """\
  config {{
    name: "{name}"
    base_path: "{folder}/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: {version} }} }}
  }}
"""
_ARRANGEMENTS = {"each by itself": 0, "together": 2}
_SMALL_BYTES = 64 << 20


def main() -> None:
    """The command line; prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="models of a preset, from make bench-serving")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pictures", type=int, default=4, help="pictures per client")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-threads", type=int, default=_ARRANGEMENTS["together"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() / "ours"
    if arguments.serve is not None:
        _serve(folder, arguments.serve)
        return
    _lay_out(folder, arguments.batch_size)
    best: dict[tuple[str, int], float] = {}
    arrangements = {**_ARRANGEMENTS, "together": arguments.batch_threads}
    with contextlib.ExitStack() as servers:
        generators = {
            name: Generator(servers.enter_context(_server(arguments.folder, threads)))
            for name, threads in arrangements.items()
        }
        for _ in range(arguments.rounds):
            for name, generator in generators.items():
                for clients in arguments.clients:
                    found = _pictures_a_second(generator, clients, arguments)
                    print(f"{name}, {clients} at once: {found:.2f} per second", flush=True)
                    best[name, clients] = max(found, best.get((name, clients), 0.0))
    fewest = min(arguments.clients)
    print(
        "\n| requests are drawn | concurrent clients | pictures per second | "
        "relative to one client |"
    )
    print("| --- | ---: | ---: | ---: |")
    for (name, clients), value in best.items():
        times = value / best[name, fewest]
        print(f"| {name} | {clients} | {value:.2f} | {times:.2f} |")


def _pictures_a_second(generator: Generator, clients: int, arguments: argparse.Namespace) -> float:
    def ask(client: int, pictures: int = arguments.pictures) -> None:
        for number in range(pictures):
            generator.generate(
                [f"a drawing of a round creature, {client}"],
                num_steps=arguments.steps,
                sampler=arguments.sampler,
                seed=1000 * client + number,
            )

    with ThreadPoolExecutor(clients) as threads:
        # Does what batches of these sizes need once.
        list(threads.map(ask, range(clients), [1] * clients))
        since = time.monotonic()
        list(threads.map(ask, range(clients)))
        return clients * arguments.pictures / (time.monotonic() - since)


def _lay_out(folder: Path, batch_size: int) -> None:
    configs = [
        _CONFIG.format(name=name, folder=folder, version=VERSION) for name in SERVED_NETWORKS
    ]
    (folder / "models.config").write_text(f"model_config_list {{\n{''.join(configs)}}}\n")
    for name in SERVED_NETWORKS:
        parameters = folder / name / str(VERSION) / "batching_params.pbtxt"
        parameters.write_bytes(batching_parameters(batch_size))


@contextlib.contextmanager
def _server(folder: Path, batch_threads: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.serving.clients", str(folder)]
    process = subprocess.Popen(
        [*command, "--serve", str(batch_threads)],
        cwd=ROOT,
        env={**os.environ, **TENSORFLOW_ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.communicate("")


def _serve(folder: Path, batch_threads: int) -> None:
    """Serves until the standard input ends."""
    import tensorflow as tf

    [data] = (folder / "diffusion_model" / str(VERSION)).glob("variables/variables.data-*")
    if data.stat().st_size <= _SMALL_BYTES:
        # As docs/serving.md recommends for TensorFlow Serving.
        tf.config.threading.set_intra_op_parallelism_threads(1)
    sys.path.append(str(ROOT / "tests" / "serving"))
    from tf_serving import TfServing

    with TfServing(folder / "models.config", batch_threads=batch_threads or None) as server:
        print(json.dumps({"address": server.grpc}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
