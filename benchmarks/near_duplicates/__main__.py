"""What counts as a near duplicate, and the cost of finding them: the table of docs/datasets.md.

`make bench-near-duplicates`. No set has near duplicates of its own, so none of its pictures must be
thrown together. Then every variant of some of its pictures is added, and the variants that are
found are counted. `--ingest 10000` instead measures how much of the ingest of that many generated
pictures is the search for near duplicates.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from benchmarks.ingest.pictures import write_dataset
from benchmarks.near_duplicates.pictures import SETS, VARIANTS, encoded
from benchmarks.processes import measured
from components.caption_example_gen.rows import IGNORE, KEEP_TOGETHER
from storage.images import SKETCH_SIDE, inspect_image
from storage.near_duplicates import group

_VARIED = 60


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-near-duplicates", description=__doc__)
    parser.add_argument("--varied", type=int, default=_VARIED, help="pictures to vary")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000], help="sketches to time")
    parser.add_argument("--ingest", type=int, default=0, help="pictures whose ingest to measure")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --ingest")
    arguments = parser.parse_args()
    if arguments.ingest:
        _share(arguments.ingest, arguments.rounds)
        return
    shown = {name: make() for name, make in SETS.items()}
    print("|", *(f"| {name}" for name in shown), "|")
    print("| ---", *("| ---:" for _ in shown), "|")
    print("| pictures", *(f"| {len(pictures):,}" for pictures in shown.values()), "|")
    thrown = [_grouped(encoded(p) for p in pictures) for pictures in shown.values()]
    print("| thrown together", *(f"| {sum(map(len, groups))}" for groups in thrown), "|")
    for name, variant in VARIANTS.items():
        rates = []
        for pictures in shown.values():
            chosen = pictures[:: max(1, len(pictures) // arguments.varied)][: arguments.varied]
            rates.append(_found(chosen, [variant(picture) for picture in chosen]))
        print(f"| {name}", *(f"| {100 * rate:.0f} %" for rate in rates), "|", flush=True)
    for size in arguments.sizes:
        sketches, aspects = _random_sketches(size)
        since = time.monotonic()
        group(sketches, aspects)
        print(f"grouping {size:,} sketches takes {time.monotonic() - since:.2f} s")


def _share(count: int, rounds: int) -> None:
    """Prints the processor time of ingest by one worker, in turns with and without the search."""
    taken: dict[str, list[float]] = {IGNORE: [], KEEP_TOGETHER: []}
    with tempfile.TemporaryDirectory() as folder:
        dataset = os.path.join(folder, "pictures")
        write_dataset(dataset, count, distinct=count)
        for _ in range(rounds):
            for way, seconds in taken.items():
                result = measured("benchmarks.ingest.ours", dataset, "--near-duplicates", way)
                seconds.append(result["processor_seconds"])
    least = {way: min(seconds) for way, seconds in taken.items()}
    for way, seconds in taken.items():
        print(f"{way}: {', '.join(f'{each:.2f}' for each in seconds)} s of processor time")
    print(f"{least[KEEP_TOGETHER] / least[IGNORE] - 1:.1%} more, by the minimum of each")


def _found(pictures: Sequence[Image.Image], variants: Sequence[bytes]) -> float:
    """The fraction of pictures that are in a group with only their variant."""
    count = len(pictures)
    groups = _grouped([*(encoded(picture) for picture in pictures), *variants])
    return sum(list(found) == [found[0], found[0] + count] for found in groups) / count


def _grouped(files: Iterable[bytes]) -> list[np.ndarray]:
    facts = [inspect_image(file, with_sketch=True) for file in files]
    sketches = np.stack([np.frombuffer(f.sketch, np.uint8) for f in facts])
    return group(
        sketches.reshape(-1, SKETCH_SIDE, SKETCH_SIDE, 3),
        np.array([f.width / f.height for f in facts]),
    )


def _random_sketches(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = (SKETCH_SIDE, SKETCH_SIDE)
    sketches = [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.BICUBIC)
        for _ in range(count)
    ]
    return np.stack([np.asarray(s.convert("YCbCr")) for s in sketches]), np.ones(count)


if __name__ == "__main__":
    main()
