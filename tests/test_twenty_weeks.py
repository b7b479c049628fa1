"""A dataset that grows, shrinks, drifts and breaks, week by week, watched by the real command.

Three weeks take minutes, for every run traces its networks anew; so both tests are slow ones. Three
weeks without networks are in `tests/pipeline/test_local_runner.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from ml_metadata.proto import metadata_store_pb2 as mlmd
from test_end_to_end import SMALL_MODEL, Pipeline, project
from weekly_dataset import Dataset, Picture, check_changes

from components.tfrecords import read_shard
from storage import row_index

REPO_ROOT = Path(__file__).resolve().parent.parent
SETTINGS = """
dataset:
  eval_fraction: 0.25
training:
  steps: 40
  batch_size: 8
  learning_rate: 0.002
  warmup_steps: 1
  ema_decay: 0.8
  checkpoint_every_steps: 20
  log_every_steps: 20
validation:
  prompts: [a drawing of a round blue creature]
  num_steps: 2
evaluation:
  num_strata: 2
  num_samples: 0
  num_training_pictures: 0
  num_training_samples: 0
  when_unsure: refuse
serving:
  canary: false
  keep_versions: 2
output:
  folder: out
  keep_runs: 2
"""
LOOK_EVERY = 15
WEEK = ("grows", "drifts", "breaks", "shrinks", "grows", "is torn")
"""What happens to the dataset, over and over."""

__all__ = ["project"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a week that was run to its end."""

    what: str
    said: str
    rows: tuple[Picture, ...]
    size: int


class Watched:
    """A watcher in a process of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._lines = folder / "watcher.txt"
        self._read = 0
        with open(self._lines, "wb") as output:
            self._process = subprocess.Popen(
                [*command, "--watch", f"{LOOK_EVERY}s"],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def decided(self, timeout: float = 1500) -> str:
        """What came of the next change."""
        end = time.monotonic() + timeout
        pattern = r"(the run is done after|the run failed after|the dataset cannot be read).*\n"
        while time.monotonic() < end:
            text = self._lines.read_text()
            if found := re.search(pattern, text[self._read :]):
                self._read += found.end()
                return found[0]
            assert self._process.poll() is None, text
            time.sleep(1)
        raise AssertionError(self._lines.read_text())

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=120)


def size_of(output: Path) -> int:
    """Bytes of what grows with every run and is to be removed: pages and notes stay."""
    folders = [output / "checkpoints", output / "serving_model"]
    for step in ("CaptionExampleGen/examples", "LatentGen", "LossScorer", "Trainer/model"):
        folders.append(output / "artifacts" / step)
    paths = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.lstat().st_size for path in paths if path.is_file())


class Models:
    """What ML Metadata says of the models and their data."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._store = pipeline.store()
        self._artifacts = {a.id: a for a in self._store.get_artifacts()}
        self._made: dict[int, int] = {}
        self._taken: dict[int, dict[str, int]] = {}
        steps = [e.id for e in self._store.get_executions()]
        for event in self._store.get_events_by_execution_ids(steps):
            if event.type == mlmd.Event.OUTPUT:
                self._made.setdefault(event.artifact_id, event.execution_id)
            elif event.type == mlmd.Event.INPUT:
                taken = self._taken.setdefault(event.execution_id, {})
                taken[event.path.steps[0].key] = event.artifact_id

    def releases(self) -> dict[str, int]:
        """The model of every release."""
        return {
            a.custom_properties["pushed_version"].string_value: self.given(a.id, "model")
            for a in self._artifacts.values()
            if a.type == "PushedModel" and "pushed_version" in a.custom_properties
        }

    def trained(self) -> list[int]:
        """All models that were trained, in order."""
        models = [a for a in self._artifacts.values() if a.type == "Model"]
        return [a.id for a in models if "examples" in self._taken.get(self._made[a.id], {})]

    def given(self, artifact: int, key: str) -> int:
        return self._taken[self._made[artifact]][key]

    def rows(self, model: int, split: str) -> dict[str, row_index.IndexedRow]:
        """The rows of the dataset of a model, by their ids."""
        examples = self.given(self.given(model, "examples"), "examples")
        folder = os.path.join(self._artifacts[examples].uri, row_index.FOLDER_NAME)
        return {row.id: row for row in row_index.read_rows(folder, split)}

    def lineage(self, model: int) -> Iterator[int]:
        """A model, and those that it went on from."""
        while True:
            yield model
            taken = self._taken[self._made[model]]
            if "base_model" not in taken:
                return
            model = taken["base_model"]

    def trained_on(self, model: int) -> set[str]:
        """Pictures that a model, or one that it went on from, was trained on."""
        return {row.picture for m in self.lineage(model) for row in self.rows(m, "train").values()}

    def scored(self) -> Iterator[tuple[int, set[str]]]:
        """Every model whose scores are there, and the pictures that it was judged by."""
        for artifact in self._artifacts.values():
            made = self._taken.get(self._made.get(artifact.id, 0), {})
            folder = Path(artifact.uri, "Split-eval")
            is_scores = {"latents", "model"} <= made.keys() and artifact.type == "Examples"
            # A clean-up removes those of models that are gone.
            if is_scores and artifact.state == mlmd.Artifact.LIVE:
                rows = self.rows(made["model"], "eval")
                ids = {
                    tf.train.Example.FromString(record).features.feature["id"].bytes_list.value[0]
                    for path in folder.glob("*.gz")
                    for record in read_shard(str(path))
                }
                yield made["model"], {rows[i.decode()].picture for i in ids}


@pytest.mark.slow
@pytest.mark.parametrize("weeks", [3, 20])
@pytest.mark.timeout(4 * 3600)
def test_weeks_of_a_dataset_that_changes(
    project: Path,
    tmp_path: Path,
    weeks: int,
) -> None:
    settings = SETTINGS + SMALL_MODEL + "  start_from: latest_blessed\n"
    pipeline = Pipeline(tmp_path, "set", project=project, settings=settings)
    (tmp_path / "set").mkdir()
    dataset = Dataset(tmp_path / "set" / "train.parquet")
    happened = ["begins", *(WEEK[i % len(WEEK)] for i in range(weeks - 1))]
    dataset.change(happened[0])
    watched = Watched(pipeline.command, tmp_path)
    runs: list[Run] = []
    try:
        for week, what in enumerate(happened):
            if week:
                dataset.change(what)
            said = watched.decided()
            if what == "breaks":
                assert "the run failed after" in said
                assert "cannot be used" in said
            elif what == "is torn":
                assert "the dataset cannot be read" in said
            else:
                assert "the run is done after" in said
                runs.append(Run(what, said, tuple(dataset.rows), size_of(pipeline.output)))
    finally:
        status = watched.end()
    assert status == 128 + signal.SIGTERM

    models = Models(pipeline)
    trained = models.trained()
    assert len(trained) == len(runs)
    week_of = dict(zip(trained, runs, strict=True))
    releases = models.releases()
    assert releases
    pushed = [run for run in runs if "release" in run.said]
    assert [week_of[model] for model in releases.values()] == pushed
    for model, judged_by in models.scored():
        assert judged_by
        assert judged_by.isdisjoint(models.trained_on(model))

    def lineage(*arguments: str) -> Any:
        command = [sys.executable, "-m", "pipeline.lineage", "--store", str(pipeline.output)]
        done = subprocess.run(
            [*command, "--json", *arguments],
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    told = lineage("history")["releases"]
    assert [release["version"] for release in told] == [*releases]
    before: Run | None = None
    for release, model in zip(told, releases.values(), strict=True):
        run = week_of[model]
        # A release is better than what it was compared with.
        metrics = release["run"]["metrics"]
        assert metrics["loss"] < metrics["loss_baseline"]
        assert release["rows"] == len(run.rows)
        if before is not None:
            check_changes(release["changes"], before.rows, run.rows)
            check_changes(lineage("added", told[0]["version"], release["version"]),
                          week_of[releases[told[0]["version"]]].rows, run.rows)  # fmt: skip
        before = run
        if run.what == "drifts" and "base_model" in models._taken[models._made[model]]:
            assert "caption/words" in release["drift"]
    check_known(lineage, models, releases, runs[0].rows[:2] + runs[-1].rows[-2:], tmp_path)
    if weeks > len(WEEK):
        sizes = [run.size for run in runs]
        assert max(sizes[6:]) < 1.5 * max(sizes[:6])


def check_known(
    lineage: Any,
    models: Models,
    releases: Mapping[str, int],
    pictures: tuple[Picture, ...],
    folder: Path,
) -> None:
    """Which releases know a picture, from its file."""
    for picture in pictures:
        (folder / "asked.png").write_bytes(picture.content)
        digest = picture.digest
        trained_on = [v for v, m in releases.items() if digest in models.trained_on(m)]
        held_out = [
            v
            for v, m in releases.items()
            if v not in trained_on
            and any(
                digest in {row.picture for row in models.rows(one, "eval").values()}
                for one in models.lineage(m)
            )
        ]
        if trained_on or held_out:
            found = lineage("known", str(folder / "asked.png"))
            assert (found["trained_on"], found["held_out"]) == (trained_on, held_out)
