"""The learning rate found by the search, beside a grid: `make bench-tuning`, after `make run`.

Trains with every learning rate of a grid to the end, on the latents of a run, and then searches
like the Tuner. Prints both as Markdown: the losses on the pictures that decide, and the costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
from tfx.components.trainer.fn_args_utils import FnArgs

from benchmarks.processes import ROOT
from pipeline.config import load_config, resolve_base_weights
from pipeline.trainer_settings import trainer_settings
from trainer.run_fn import tuner_fn
from trainer.training_config import TuningConfig


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-tuning", description=__doc__)
    parser.add_argument("--run", default=str(ROOT / "runs" / "default"), help="output folder")
    parser.add_argument("--config", help="YAML file with settings")
    parser.add_argument("--trials", type=int, default=12, help="trials of the search")
    parser.add_argument("--grid", type=int, default=7, help="learning rates of the grid")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = sorted(
        Path(arguments.run, "artifacts/LatentGen/latents").iterdir(), key=lambda p: int(p.name)
    )
    with tempfile.TemporaryDirectory() as folder:
        _measure(str(found[-1]), folder, arguments.config, arguments.trials, arguments.grid)


def _measure(latents: str, folder: str, config: str | None, trials: int, number: int) -> None:
    settings = trainer_settings(*resolve_base_weights(load_config(config)), folder)
    tuning = TuningConfig(trials=trials)
    fn_args = FnArgs(
        train_files=[f"{latents}/Split-train/*"],
        custom_config={
            "settings": settings.to_json(),
            "run": settings.training.run_parameters,
            "tuning": dataclasses.asdict(tuning),
        },
    )
    tuner = tuner_fn(fn_args).tuner
    own, steps = settings.training.learning_rate, settings.training.steps
    assert steps is not None
    low, high = tuning.learning_rates(own) or (own, own)
    print("learning rate | held-out loss | seconds")
    for rate in np.geomspace(low, high, number):
        since = time.monotonic()
        result = tuner.train({"learning_rate": float(f"{rate:.6g}")}, steps, f"{folder}/grid")
        seconds = time.monotonic() - since
        print(f"{rate:.3g} | {result.problem or f'{result.loss:.4f}'} | {seconds:.0f}", flush=True)
    since = time.monotonic()
    tuner.search()
    search = tuner.conclude(folder)
    seconds = time.monotonic() - since
    print("\ntrial | learning rate | up to step | held-out loss | seconds")
    for record in search.records:
        rate, result = record.hyperparameters["learning_rate"], record.result
        said = result.problem or f"{result.loss:.4f}"
        mark = " (chosen)" if record.chosen else ""
        print(f"{record.trial}{mark} | {rate:.3g} | {record.steps} | {said} | {result.seconds:.0f}")
    print(f"\n{search.cost:.2f} times the steps of one training, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
