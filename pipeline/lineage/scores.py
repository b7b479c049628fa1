"""The losses that LossScorer left, read without TensorFlow."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.lineage.records import DAMAGED, read_records


def read_losses(folder: Path) -> dict[tuple[str, int], float] | None:
    """The loss of every held-out example at every timestep; `None` where there are no such files.

    Args:
        folder: Of the artifact. An example of which a loss is not finite is left out.
    """
    found: dict[tuple[str, int], float] = {}
    left_out: set[str] = set()
    paths = sorted((folder / "Split-eval").glob("*.gz"))
    try:
        for path in paths:
            for features in read_records(str(path)):
                # Other rows measure other things.
                if "loss" not in features:
                    continue
                name = features["id"].bytes_list.value[0].decode()
                loss = features["loss"].float_list.value[0]
                found[name, features["timestep"].int64_list.value[0]] = loss
                if not math.isfinite(loss):
                    left_out.add(name)
    except DAMAGED:
        # What is half removed, or damaged, tells nothing.
        return None
    return {key: loss for key, loss in found.items() if key[0] not in left_out} if paths else None
