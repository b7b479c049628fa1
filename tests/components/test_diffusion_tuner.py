"""What the component makes of the settings, and its executor of a search that is made up."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import browser, findings_of_file
from tfx import types
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import channel_utils, standard_artifacts

from components.diffusion_tuner import DiffusionTuner
from components.diffusion_tuner.executor import Executor
from pipeline.config import load_config, resolve_base_weights
from pipeline.trainer_settings import trainer_settings
from storage.user_errors import UserError
from trainer.training_config import TrainerSettings, TuningConfig
from trainer.tuning.oracle import SuccessiveHalving, search_space
from trainer.tuning.schedule import rungs
from trainer.tuning.search import TrialResult, TrialTuner

SETTINGS = trainer_settings(*resolve_base_weights(load_config()), "checkpoints")
BEST_RATE = 1e-3


def made_up_search(fn_args: FnArgs) -> TunerFnResult:
    """In the place of `tuner_fn`: what it is told, and trials without training."""
    told = fn_args.custom_config
    settings = TrainerSettings.from_json(told["settings"], told["run"])
    tuning = TuningConfig(**told["tuning"])
    schedule = rungs(tuning.trials, settings.training.steps)

    def train(found: dict[str, float], steps: int, folder: str) -> TrialResult:
        rate = found["learning_rate"]
        if rate > 5e-3:
            return TrialResult("none", 0, (), 0.0, problem="the training <diverged>")
        loss = abs(math.log10(rate / BEST_RATE)) + 1 / steps
        return TrialResult(f"{rate:g}", steps, (loss - 0.25, loss, loss + 0.25), 1.0)

    return TunerFnResult(
        tuner=TrialTuner(
            SuccessiveHalving(schedule, search_space(tuning, settings.training), seed=1),
            train,
            f"{settings.checkpoint_dir}/search",
            rungs=schedule,
            pictures=3,
            timesteps=7,
        ),
        fit_kwargs={},
    )


def component(tuning: TuningConfig, **runtime_parameters: RuntimeParameter) -> DiffusionTuner:
    examples = channel_utils.as_channel([standard_artifacts.Examples()])
    return DiffusionTuner(
        examples, settings=SETTINGS, tuning=tuning, runtime_parameters=runtime_parameters
    )


def orders(
    folder: Path, tuning: TuningConfig, **given: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Inputs, outputs and properties of an execution."""

    def artifact(kind: type[types.Artifact]) -> types.Artifact:
        made = kind()
        made.uri = str(folder / kind.__name__)
        return made

    examples = artifact(standard_artifacts.Examples)
    examples.split_names = '["train", "eval"]'
    outputs = {
        "best_hyperparameters": [artifact(standard_artifacts.HyperParameters)],
        "tuner_results": [artifact(standard_artifacts.TunerResults)],
    }
    properties = {**component(tuning).exec_properties, **given}
    properties["tuner_fn"] = "test_diffusion_tuner.made_up_search"
    config = json.loads(properties["custom_config"])
    config["settings"]["checkpoint_dir"] = str(folder / "checkpoints")
    properties["custom_config"] = json.dumps(config)
    return {"examples": [examples]}, outputs, properties


def context(folder: Path) -> BaseExecutor.Context:
    return Executor.Context(tmp_dir=str(folder / "temporary"), unique_id="1")


def searched(folder: Path, tuning: TuningConfig, **given: Any) -> dict[str, types.Artifact]:
    inputs, outputs, properties = orders(folder, tuning, **given)
    Executor(context(folder)).Do(inputs, outputs, properties)
    return {name: made for name, [made] in outputs.items()}


def test_what_is_left_open_is_a_property_of_its_own() -> None:
    rate = RuntimeParameter("learning_rate", float)
    properties = component(TuningConfig(trials=12), learning_rate=rate).exec_properties
    assert properties["learning_rate"] is rate
    assert properties["steps"] == SETTINGS.training.steps
    assert "run" not in json.loads(properties["custom_config"])


def test_the_best_is_handed_on_and_all_of_it_told(tmp_path: Path) -> None:
    made = searched(tmp_path, TuningConfig(trials=12), steps=90)
    best = made["best_hyperparameters"]
    [file] = Path(best.uri).iterdir()
    found = json.loads(file.read_text())["values"]
    told = json.loads(Path(made["tuner_results"].uri, "trials.json").read_text())
    # The steps that a run is started with, not those of the settings.
    assert [(r["trials"], r["steps"]) for r in told["rungs"]] == [(12, 10), (4, 30), (2, 90)]
    assert told["cost"] == pytest.approx((12 * 10 + 4 * 20 + 2 * 60) / 90)
    [chosen] = [record for record in told["records"] if record["chosen"]]
    assert chosen["steps"] == 90
    rate = chosen["hyperparameters"]["learning_rate"]
    assert rate == pytest.approx(found["learning_rate"], rel=1e-5)
    assert abs(math.log10(rate / BEST_RATE)) < 0.3
    assert len(told["records"]) == 18
    assert len({record["result"]["problem"] for record in told["records"]}) == 2
    assert best.get_string_custom_property("found") == f"learning_rate {rate:g}"
    assert best.get_string_custom_property("trial") == chosen["trial"]
    assert best.get_int_custom_property("trials") == 12
    loss = best.get_float_custom_property("held_out_loss")
    assert loss == pytest.approx(sum(chosen["result"]["losses"]) / 3)
    # TFX's own file, which has those alone that came to a loss.
    results = json.loads(Path(made["tuner_results"].uri, "tuner_results.json").read_text())
    assert all(math.isfinite(result["score"]) for result in results)


def test_the_page_has_every_trial_with_interval_cost_and_problem(tmp_path: Path) -> None:
    made = searched(tmp_path, TuningConfig(trials=12), steps=90)
    told = json.loads(Path(made["tuner_results"].uri, "trials.json").read_text())
    page = Path(made["tuner_results"].uri, "tuning.html").read_text()
    assert page.count("goes on from") == 6
    assert page.count(">chosen</strong>") == 1
    assert "the training &lt;diverged&gt;" in page
    assert "3.6 times one training" in page
    [chosen] = [record for record in told["records"] if record["chosen"]]
    loss = sum(chosen["result"]["losses"]) / 3
    # Student's t at two degrees of freedom, of a deviation of 0.25 over three pictures.
    reach = 4.302653 * 0.25 / math.sqrt(3)
    assert f"{loss:.4f} ({loss - reach:.4f} to {loss + reach:.4f})" in page
    seconds = sum(record["result"]["seconds"] for record in told["records"])
    assert f"{seconds:.0f} s" in page
    assert "<script" not in page


def test_a_screen_reader_finds_nothing_amiss(tmp_path: Path) -> None:
    made = searched(tmp_path, TuningConfig(trials=12), steps=90)
    with browser() as chromium:
        assert findings_of_file(chromium, Path(made["tuner_results"].uri, "tuning.html")) == []


def test_a_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    tuning = TuningConfig(trials=3, learning_rate=[0.01, 0.1])
    with pytest.raises(UserError, match=r"none of \d+ trials has a held-out loss .*<diverged>"):
        searched(tmp_path, tuning, steps=9)


@pytest.mark.slow
def test_two_workers_try_side_by_side(tmp_path: Path) -> None:
    places = []
    for _ in range(2):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            places.append(f"127.0.0.1:{found.getsockname()[1]}")
    cluster = {"workerpool0": places[:1], "workerpool1": places[1:]}
    here = Path(__file__)
    workers = []
    for pool in cluster:
        spec = {"cluster": cluster, "task": {"type": pool, "index": 0}}
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parent)]),
            "CLUSTER_SPEC": json.dumps(spec),
            # With which each would wait for the other.
            "TF_CONFIG": json.dumps({"cluster": {"worker": places}, "task": {"type": "worker"}}),
        }
        argv = [sys.executable, str(here), str(tmp_path)]
        workers.append(subprocess.Popen(argv, env=environment))
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    told = json.loads((tmp_path / "TunerResults" / "trials.json").read_text())
    assert len(told["records"]) == 18
    assert sorted(record["round"] for record in told["records"]) == [0] * 12 + [1] * 4 + [2] * 2
    [chosen] = [record for record in told["records"] if record["chosen"]]
    rate = chosen["hyperparameters"]["learning_rate"]
    assert abs(math.log10(rate / BEST_RATE)) < 0.3
    best = json.loads((tmp_path / "HyperParameters" / "best_hyperparameters.txt").read_text())
    assert best["values"]["learning_rate"] == pytest.approx(rate, rel=1e-5)


def _work(folder: Path) -> None:
    """A worker of a custom job."""
    from components.diffusion_tuner.custom_job import Worker

    tuning = TuningConfig(trials=12, parallel_trials=2)
    Worker(context(folder)).Do(*orders(folder, tuning, steps=90))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
