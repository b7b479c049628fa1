"""Our rows and checks on a GPU, by JAX: `run.py` starts this once for each. Needs JAX and NumPy.

A row is an HLO module that TensorFlow made, without weights. JAX hands it to XLA like its own
modules. Its variables are made here, by shape, and donated: the results of a step are the
parameters of the next one. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import lzma
import os
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# A step's number has 64 bits.
os.environ["JAX_ENABLE_X64"] = "1"
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
import numpy as np
from jaxlib import _jax

from .comparing import compare_drawings, compare_losses
from .modules import named
from .timing import seconds_a_call, speed

_PROFILED_CALLS = 3
_SHOWN_OPERATIONS = 5
_HLO_NAME = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.M)


class DoesNotFitError(Exception):
    """A row needs more memory than the card has."""


class Computation:
    """An HLO module of the pack, compiled for a device, and its parameters."""

    def __init__(self, device: jax.Device, folder: Path, name: str) -> None:
        """Compiles it.

        Args:
            device: The device to compile for.
            folder: Folder of the pack's rows or checks.
            name: Name of the row.
        """
        self.device = device
        with lzma.open(folder / f"{name}.json.xz") as f:
            call = json.load(f)
        self.parameters: list[dict[str, Any]] = call["parameters"]
        self._results: list[str] = call["results"]
        self._aliases: dict[int, int] = dict(call["aliases"])
        with lzma.open(folder / f"{name}.hlo.xz") as f:
            module = _jax.mlir.hlo_to_stablehlo(named(f.read()))
        since = time.perf_counter()
        self._executable = device.client.compile_and_load(module, [device], _jax.CompileOptions())
        self.compile_seconds = time.perf_counter() - since

    @property
    def needed_bytes(self) -> int:
        """The memory that XLA planned: parameters, results without aliases, and all in between."""
        stats = self._executable.get_compiled_memory_stats()
        return int(
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.temp_size_in_bytes
            + stats.generated_code_size_in_bytes
        )

    def operation_names(self) -> dict[str, str]:
        """For each instruction that runs, the TensorFlow operation that it comes from."""
        return dict(
            _HLO_NAME.findall("\n".join(m.to_string() for m in self._executable.hlo_modules()))
        )

    def first_values(self, features: Mapping[str, np.ndarray] | None = None) -> list[jax.Array]:
        """All parameters, on the device.

        Args:
            features: Values of the parameters that the pack calls a feature or an array; without
                them, normal noise.
        """
        # One draw, of which every parameter takes a different part: drawing each takes minutes.
        largest = max(int(np.prod(p["shape"])) for p in self.parameters)
        noise = np.random.default_rng(0).standard_normal(2 * largest + 1, np.float32)
        return [
            jax.device_put(_first_value(p, index, noise, features or {}), self.device)
            for index, p in enumerate(self.parameters)
        ]

    def __call__(self, values: list[jax.Array]) -> dict[str, jax.Array]:
        """Runs once; replaces the donated `values` by the next ones.

        Returns:
            The results that do not take the place of a parameter, by their names.
        """
        results = self._executable.execute(values)
        named = {}
        names = iter(self._results)
        for position, result in enumerate(results):
            if position in self._aliases:
                values[self._aliases[position]] = result
            else:
                named[next(names)] = result
        return named


def _first_value(
    parameter: Mapping[str, Any],
    index: int,
    noise: np.ndarray,
    features: Mapping[str, np.ndarray],
) -> np.ndarray:
    shape, dtype = parameter["shape"], np.dtype(parameter["dtype"])
    given = parameter.get("array", parameter.get("feature"))
    if given in features:
        return features[given].astype(dtype).reshape(shape)
    if "fill" in parameter:
        return np.full(shape, parameter["fill"], dtype)
    size = int(np.prod(shape))
    start = index * 7919 % (len(noise) - size)
    values = noise[start : start + size].reshape(shape)
    return (values * np.float32(parameter.get("normal", 1.0))).astype(dtype)


def measure_row(device: jax.Device, pack: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Times a row, and measures its memory and where the time goes.

    Raises:
        DoesNotFitError: XLA planned more memory than there is.
    """
    computation = Computation(device, pack / "rows", row["name"])
    facts: dict[str, Any] = {
        "compile_seconds": computation.compile_seconds,
        "planned_bytes": computation.needed_bytes,
    }
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is not None and computation.needed_bytes > limit:
        raise DoesNotFitError(
            f"XLA planned {computation.needed_bytes / 1e9:.1f} GB, and the card gives "
            f"{limit / 1e9:.1f} GB"
        )
    values = computation.first_values()
    latest: dict[str, jax.Array] = {}

    def call() -> None:
        latest.update(computation(values))

    def wait() -> None:
        jax.block_until_ready(list(latest.values()))

    for _ in range(2):
        call()
    wait()
    seconds = seconds_a_call(call, wait)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    facts |= {
        **speed(dict(row), device.device_kind, seconds),
        "peak_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "finite": all(bool(np.isfinite(np.asarray(x)).all()) for x in latest.values()),
        "operations": _operations(computation, call, wait),
    }
    return facts


def _operations(computation: Computation, call: Any, wait: Any) -> list[dict[str, Any]]:
    """The operations that took most of the device's time, similar layers taken together.

    Empty if the profiler saw nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_PROFILED_CALLS):
                call()
            wait()
        files = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profiles = [jax.profiler.ProfileData.from_file(file) for file in files]
        names = computation.operation_names()
        # The names of kernels have no dots.
        names |= {re.sub(r"[.\-]", "_", name): operation for name, operation in names.items()}
        spent: collections.defaultdict[str, float] = collections.defaultdict(float)
        kernels: collections.Counter[str] = collections.Counter()
        for kernel, instruction, nanoseconds in _events(profiles):
            operation = names.get(instruction or kernel, names.get(kernel, kernel))
            alike = re.sub(r"_?\d+", "", operation)
            spent[alike] += nanoseconds
            kernels[alike] += 1
    total = sum(spent.values())
    return [
        {
            "operation": operation,
            "share": nanoseconds / total,
            "seconds": nanoseconds * 1e-9 / _PROFILED_CALLS,
            "kernels": kernels[operation] / _PROFILED_CALLS,
        }
        for operation, nanoseconds in sorted(spent.items(), key=lambda pair: -pair[1])[
            :_SHOWN_OPERATIONS
        ]
    ]


def _events(profiles: Sequence[Any]) -> Iterator[tuple[str, str | None, float]]:
    """Name, instruction and nanoseconds of everything that ran on a device.

    On a CPU, whose plane also has other activity of the threads, only the events of instructions.
    """
    for profile in profiles:
        for plane in profile.planes:
            on_gpu = plane.name.startswith("/device:GPU")
            if not on_gpu and plane.name != "/host:CPU":
                continue
            for line in plane.lines:
                if on_gpu and not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    stats = dict(event.stats)
                    instruction = stats.get("hlo_op")
                    if on_gpu or instruction is not None:
                        yield event.name, instruction, event.duration_ns


def run_check(device: jax.Device, pack: Path, check: Mapping[str, Any]) -> dict[str, Any]:
    """Computes a check with its inputs, and how far its results are from a CPU's."""
    computation = Computation(device, pack / "checks", check["name"])
    arrays: dict[str, np.ndarray] = {}
    for file in check["arrays"]:
        with np.load(pack / "checks" / file) as stored:
            arrays |= {name: stored[name] for name in stored.files}
    facts: dict[str, Any] = {"compile_seconds": computation.compile_seconds}
    if check["kind"] == "drawing":
        results = computation(computation.first_values(arrays))
        expected = {name: arrays[check[name]] for name in ("latent", "pixels")}
        return facts | compare_drawings({n: np.asarray(x) for n, x in results.items()}, expected)
    values = computation.first_values({n: _at(x, n, 0) for n, x in arrays.items()})
    of_step = [
        (index, p["feature"])
        for index, p in enumerate(computation.parameters)
        if p.get("feature", "").startswith("given/")
    ]
    losses = []
    for step in range(check["steps"]):
        for index, name in of_step:
            dtype = computation.parameters[index]["dtype"]
            value = _at(arrays[name], name, step).astype(dtype)
            values[index] = jax.device_put(value, device)
        losses.append(float(computation(values)["loss"]))
    return facts | compare_losses(losses, check["losses"])


def _at(array: np.ndarray, name: str, step: int) -> np.ndarray:
    """The part for one step, if the array differs from step to step."""
    return array[step] if name.startswith("given/") else array


def describe(device: jax.Device) -> dict[str, Any]:
    """The device and the software, for the head of the results."""
    stats = device.memory_stats() or {}
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "memory_bytes": stats.get("bytes_limit"),
        "software": {"jax": jax.__version__, "numpy": np.__version__},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--pack", type=Path, default=Path(), help="its folder")
    parser.add_argument("--row", type=json.loads, help="a row of the manifest")
    parser.add_argument("--check", type=json.loads, help="a check of the manifest")
    arguments = parser.parse_args()
    pack = arguments.pack
    device = jax.devices(arguments.device)[0]
    try:
        if arguments.row:
            facts = measure_row(device, pack, arguments.row)
        elif arguments.check:
            facts = run_check(device, pack, arguments.check)
        else:
            facts = describe(device)
    except DoesNotFitError as error:
        facts = {"state": "does not fit", "why": str(error)}
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        facts = {"state": "does not fit", "why": str(error).splitlines()[0][:300]}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
