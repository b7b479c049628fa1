"""Reads the losses that LossScorer wrote, without TensorFlow."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.lineage.records import DAMAGED, read_records


def read_losses(folder: Path) -> dict[tuple[str, int], float] | None:
    """Reads the loss of every held-out example at every timestep; `None` if there are no files.

    An example with a loss that is not finite is left out.

    Args:
        folder: The folder of the artifact.
    """
    found: dict[tuple[str, int], float] = {}
    left_out: set[str] = set()
    paths = sorted((folder / "Split-eval").glob("*.gz"))
    try:
        for path in paths:
            for features in read_records(str(path)):
                # Other rows have other measurements.
                if "loss" not in features:
                    continue
                name = features["id"].bytes_list.value[0].decode()
                loss = features["loss"].float_list.value[0]
                found[name, features["timestep"].int64_list.value[0]] = loss
                if not math.isfinite(loss):
                    left_out.add(name)
    except DAMAGED:
        # Half removed or damaged files are not used.
        return None
    return {key: loss for key, loss in found.items() if key[0] not in left_out} if paths else None
