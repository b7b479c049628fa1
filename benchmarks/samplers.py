"""How samplers do with few steps: `make bench-samplers`, after `make run`.

Draws the held-out captions of a run of the sample dataset with the models that it pushed, from the
same noise each time. Prints how often pictures have what their captions ask for, and the seconds
per picture. The recommendations of presets are chosen by this.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.processes import ROOT
from components.measures.colour_agreement import ColourAgreement
from components.measures.creature_agreement import EyesAgreement, FeatureAgreement, ShapeAgreement
from components.measures.measure import Drawn, MeasureSettings
from components.tfrecords import read_shard
from serving.client import Generator

_WAYS = (("ddim", 25), ("dpmpp_2m", 10), ("dpmpp_2m", 25), ("euler_a", 25), ("euler_a", 50))
_MEASURES = (ColourAgreement(), ShapeAgreement(), EyesAgreement(), FeatureAgreement())


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-samplers", description=__doc__)
    parser.add_argument("--run", default=str(ROOT / "runs" / "default"), help="output folder")
    parser.add_argument("--seeds", type=int, default=2, help="pictures per caption")
    arguments = parser.parse_args()
    captions = _held_out(Path(arguments.run)) * arguments.seeds
    seeds = list(range(len(captions)))
    generator = Generator(str(Path(arguments.run, "serving_model")))
    measures = [(m.label, m.load(MeasureSettings())) for m in _MEASURES]
    print(f"{len(captions)} pictures each")
    print(" | ".join(["sampler", "steps", *(label for label, _ in measures), "seconds"]))
    for sampler, num_steps in _WAYS:
        since = time.monotonic()
        pictures = generator.generate(captions, sampler=sampler, num_steps=num_steps, seed=seeds)
        seconds = (time.monotonic() - since) / len(captions)
        nothing = np.zeros((len(captions), 0))
        drawn = Drawn(pictures=pictures, means=nothing, tokens=nothing, captions=captions)
        found = [[value for value in right(drawn) if value is not None] for _, right in measures]
        shown = [f"{100 * np.mean(values):.0f} %" for values in found]
        print(" | ".join([sampler, str(num_steps), *shown, f"{seconds:.2f}"]), flush=True)


def _held_out(run: Path) -> list[str]:
    folder = sorted(run.glob("artifacts/CaptionExampleGen/examples/*"), key=lambda p: int(p.name))
    return [
        tf.train.Example.FromString(record).features.feature["caption"].bytes_list.value[0].decode()
        for shard in sorted((folder[-1] / "Split-eval").iterdir())
        for record in read_shard(str(shard))
    ]


if __name__ == "__main__":
    main()
