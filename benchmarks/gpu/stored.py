"""How a pack stores a computation: in two files, readable without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Traced:
    """A computation, and what a runner must know about it.

    Attributes:
        hlo: A serialized `HloModuleProto`.
        parameters: For each parameter, `dtype`, `shape` and the source of its first value: `normal`
            and a deviation, `fill` and a number, `feature` and the name of a feature of the batch,
            or `array` and a name.
        results: Names of the results that do not take the place of a parameter, in order.
        aliases: For each other result, by position, the parameter whose next value it is.
        flops: From `count_flops`.
        estimate_bytes: Our own estimate of the memory that it takes.
    """

    hlo: bytes
    parameters: Sequence[Mapping[str, Any]]
    results: Sequence[str]
    aliases: Mapping[int, int]
    flops: int
    estimate_bytes: int


def write_traced(traced: Traced, folder: Path, name: str) -> None:
    """Writes `<folder>/<name>.hlo.xz`, and everything else into `.json.xz`.

    The second file is only there when both are whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    call = {
        "parameters": list(traced.parameters),
        "results": list(traced.results),
        "aliases": [list(pair) for pair in traced.aliases.items()],
        "flops": traced.flops,
        "estimate_bytes": traced.estimate_bytes,
    }
    for suffix, content in (("hlo", traced.hlo), ("json", json.dumps(call).encode())):
        partial = folder / f"{name}.{suffix}.partial"
        # Smaller files take ten times as long to make.
        partial.write_bytes(lzma.compress(content, preset=2))
        partial.replace(folder / f"{name}.{suffix}.xz")


def read_facts(folder: Path, name: str) -> dict[str, int] | None:
    """The operations and the estimate that `write_traced` wrote; `None` if it did not."""
    path = folder / f"{name}.json.xz"
    if not path.exists():
        return None
    call = json.loads(lzma.decompress(path.read_bytes()))
    return {fact: call[fact] for fact in ("flops", "estimate_bytes")}
