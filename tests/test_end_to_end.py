"""The whole pipeline as a user runs it: the real command, a small dataset.

Most runs are of a copy of the project with a preset of a few thousand parameters, added to it as
CONTRIBUTING.md says: what takes time in a short run is tracing networks, layer by layer. The tests
at the end take the preset that is the default.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs
import tensorflow as tf
from hub_server import HubServer
from loopback_storage import LoopbackStorage
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from PIL import Image, ImageDraw
from signing_keys import key_pair

from benchmarks.shapes.pictures import write_pictures
from components import code_version
from pipeline import housekeeping, lineage
from pipeline.vertex.places import stage_code
from serving import generate, seals
from serving.releases import find_release
from storage import model_signatures

REPO_ROOT = Path(__file__).resolve().parent.parent
SMALL = small_runs.preset()
ADDED_PRESET = f"""
import dataclasses

_SMALL = dataclasses.replace(
    _TINY,
    name="small",
    image_size={SMALL.image_size},
    text_encoder={SMALL.text_encoder!r},
    diffusion_model={SMALL.diffusion_model!r},
    image_encoder={SMALL.image_encoder!r},
    decoder={SMALL.decoder!r},
    ships_weights=False,
)
PRESETS = MappingProxyType({{**PRESETS, "small": _SMALL}})
"""
HUB_ID = "lambdalabs/pokemon-blip-captions"
STEPS = (
    "CaptionExampleGen",
    "StatisticsGen",
    "SchemaGen",
    "CaptionValidator",
    "DatasetReport",
    "LatentGen",
    "Trainer",
    "LatestBlessedModel",
    "LossScorer",
    "Evaluator",
    "EvaluationReport",
    "ServingPusher",
)
SETTINGS = """
dataset:
  eval_fraction: 0.2
training:
  batch_size: 8
  warmup_steps: 1
  checkpoint_every_steps: 2
  log_every_steps: 2
validation:
  prompts: [a drawing of a round blue creature, a drawing of a tall red creature]
  num_steps: 3
evaluation:
  num_strata: 2
  # So few steps need make nothing better; what is pushed is the point here.
  min_loss_improvement: -10.0
  max_loss_regression: 10.0
  max_stratum_regression: 10.0
  num_samples: 2
  num_training_pictures: 4
  num_training_samples: 2
"""


SMALL_MODEL = """
model:
  preset: small
  base_weights: random
"""


def write_dataset(folder: Path) -> None:
    folder.mkdir()
    [shard, *_] = sorted((REPO_ROOT / "data" / "creatures" / "data").glob("*.parquet"))
    pq.write_table(pq.read_table(shard).slice(0, 60), folder / "train.parquet")


class Pipeline:
    """The command line with an output folder of its own."""

    def __init__(
        self,
        folder: Path,
        dataset: str,
        *,
        project: Path = REPO_ROOT,
        settings: str = SETTINGS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.project = project
        self.settings = settings
        self.output = folder / "out"
        self.environment = {**os.environ, **(environment or {})}
        (folder / "settings.yaml").write_text(settings)
        self.command = [
            sys.executable,
            str(project / "runner_local.py"),
            *("--config", "settings.yaml", "--dataset", dataset, "--output", "out"),
        ]

    def run(self, *flags: str) -> str:
        done = subprocess.run(
            [*self.command, *flags],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def statuses(self, screen: str) -> Mapping[str, str]:
        pattern = rf"^  ({'|'.join(STEPS)}) +(\w+) "
        return dict(re.findall(pattern, screen, flags=re.MULTILINE))

    def store(self) -> metadata_store.MetadataStore:
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(self.output / "metadata.sqlite")
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READONLY
        return metadata_store.MetadataStore(config)

    def completed(self) -> list[str]:
        """Node of every execution that ran to its end, in order."""
        store = self.store()
        return [
            next(
                c.name for c in store.get_contexts_by_execution(e.id) if c.type == "node"
            ).rpartition(".")[2]
            for e in store.get_executions()
            if e.last_known_state == mlmd.Execution.COMPLETE
        ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with one preset more."""
    folder = tmp_path_factory.mktemp("project")
    stage_code(folder)
    for name in ("runner_local.py", "runner_vertex.py"):
        shutil.copy(REPO_ROOT / name, folder)
    with open(folder / "trainer" / "presets.py", "a") as presets:
        presets.write(ADDED_PRESET)
    return folder


@pytest.fixture(scope="module")
def pipeline(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Trains on a dataset of a hub, served on this machine under the name it once had."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_dataset(folder / "served")
    (folder / "served" / "README.md").write_text("Creatures and what they look like.")
    with HubServer() as hub:
        hub.add(HUB_ID, folder / "served")
        (folder / "temporary").mkdir()
        environment = {
            **hub.env(folder / "hub"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TMPDIR": str(folder / "temporary"),
        }
        yield Pipeline(
            folder,
            HUB_ID,
            project=project,
            settings=SETTINGS + SMALL_MODEL,
            environment=environment,
        )


@pytest.fixture(scope="module")
def first_screen(pipeline: Pipeline) -> str:
    return pipeline.run("--steps", "4")


def test_first_run_leaves_pictures_models_and_lineage(
    pipeline: Pipeline, first_screen: str
) -> None:
    assert set(pipeline.statuses(first_screen)) == set(STEPS)
    assert set(pipeline.completed()) == set(STEPS)
    assert list((pipeline.folder / "temporary").iterdir()) == []
    report = pipeline.output / "report"
    for name in ("before_after.png", "loss_curve.png"):
        with Image.open(report / name) as image:
            assert min(image.size) > 200
    assert "Blessed</h1>" in (report / "evaluation.html").read_text()
    summary = json.loads((report / "summary.json").read_text())
    assert summary["loss"] > 0
    assert summary["loss_baseline"] > 0
    assert summary["baseline"] == "base weights"
    assert f"{summary['loss_baseline']:.4f}" in first_screen
    assert f"{summary['loss']:.4f}" in first_screen

    [examples, *_] = [
        a.custom_properties
        for a in pipeline.store().get_artifacts_by_type("Examples")
        if "dataset" in a.custom_properties
    ]
    commit = examples["dataset_revision"].string_value
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert examples["dataset"].string_value == f"hf://datasets/{HUB_ID}@{commit}"
    page = (report / "dataset.html").read_text()
    assert commit in page

    serving = pipeline.output / "serving_model"
    release = json.loads((serving / "releases" / "1.json").read_text())
    assert release["version"] == 1
    for network in ("text_encoder", "diffusion_model", "decoder"):
        assert (serving / network / "1" / "saved_model.pb").is_file()
        assert network in (serving / "models.config").read_text()


def test_a_picture_is_drawn_from_the_pushed_models(pipeline: Pipeline, first_screen: str) -> None:
    picture = pipeline.folder / "x.png"
    flags = ["--serving-dir", str(pipeline.output / "serving_model"), "--out", str(picture)]
    assert generate.main(["a drawing of a round blue creature", *flags]) == 0
    with Image.open(picture) as drawn:
        assert drawn.size == (64, 64)
        assert len(drawn.getcolors(64 * 64) or ()) > 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_that_predicts_the_velocity_goes_the_whole_way(
    project: Path, tmp_path: Path
) -> None:
    """From base weights that predict the noise to a release that draws from noise alone."""
    write_dataset(tmp_path / "data")
    settings = SETTINGS.replace("training:", "training:\n  optimizer: lion") + SMALL_MODEL
    settings += "  prediction: v_prediction\n  zero_terminal_snr: true\n"
    settings += "serving: {image_to_image: true}\n"
    run = Pipeline(tmp_path, "data", project=project, settings=settings)
    run.run("--steps", "4")
    summary = json.loads((run.output / "report" / "summary.json").read_text())
    # Of the noise, which base weights and model both say something of.
    assert 0 < summary["loss"] < 10
    assert 0 < summary["loss_baseline"] < 10
    serving = run.output / "serving_model"
    manifest = json.loads((serving / "releases" / "1.json").read_text())["manifest"]
    assert (manifest["prediction"], manifest["zero_terminal_snr"]) == ("v_prediction", True)
    model = tf.saved_model.load(str(serving / "diffusion_model" / "1"))
    assert "predict_v_prediction" in model.signatures
    picture = tmp_path / "x.png"
    flags = ["--serving-dir", str(serving), "--out", str(picture)]
    assert generate.main(["a drawing of a round blue creature", *flags]) == 0
    again = ["--image", str(picture), "--strength", "0.5", "--out", str(tmp_path / "y.png")]
    assert generate.main(["a drawing of a red creature", *flags[:2], *again]) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pictures_in_their_own_shapes_go_the_whole_way(project: Path, tmp_path: Path) -> None:
    """From portraits and landscapes to losses of each size, and taken over by the next run."""
    write_pictures(tmp_path / "data", 40, seed=0)
    settings = SETTINGS + SMALL_MODEL + "  buckets: true\n  bucket_step: 32\n"
    run = Pipeline(tmp_path, "data", project=project, settings=settings)
    run.run("--steps", "4")
    summary = json.loads((run.output / "report" / "summary.json").read_text())
    by_size = {part["pixels"]: part for part in summary["by_picture_size"]}
    assert {"32 x 96", "64 x 64", "96 x 32"} >= {*by_size} >= {"32 x 96", "96 x 32"}
    assert sum(part["num_rows"] for part in by_size.values()) == summary["example_count"]
    manifest = json.loads((run.output / "serving_model" / "releases" / "1.json").read_text())
    buckets = manifest["manifest"]["latents"]["buckets"]
    assert (
        sum(bucket["views"] for bucket in buckets)
        == manifest["manifest"]["latents"]["counts"]["train"]
    )
    for page, words in (("dataset", "96 \u00d7 32"), ("evaluation", "96 x 32")):
        assert words in (run.output / "report" / f"{page}.html").read_text()
    # Another number of steps needs no other latents.
    done = run.statuses(run.run("--steps", "5"))
    assert done["LatentGen"] == "cached"


def weights(serving_dir: Path, version: str = "1") -> dict[str, np.ndarray]:
    """Every variable of the three models."""
    found = {}
    for network in ("text_encoder", "diffusion_model", "decoder"):
        reader = tf.train.load_checkpoint(
            str(serving_dir / network / version / "variables/variables")
        )
        found |= {
            f"{network}/{name}": reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
        }
    return found


def emulation(
    *flags: str,
    settings: str = "settings.yaml",
    dataset: str = "served",
    folder: str = "emulated",
) -> list[str]:
    places = ("--config", settings, "--dataset", dataset, "--emulate-in", folder)
    return ["--emulate", *flags, *places]


def emulate(
    pipeline: Pipeline,
    argv: Sequence[str],
    program: Sequence[str] = (),
    status: int = 0,
    **environment: str,
) -> str:
    """Runs the compiled job, from a copy of the code and in an environment of its own."""
    program = program or (str(pipeline.project / "runner_vertex.py"),)
    done = subprocess.run(
        [sys.executable, *program, *argv],
        cwd=pipeline.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.timeout(2400)
def test_the_emulated_vertex_run_pushes_the_same_models(
    pipeline: Pipeline, first_screen: str
) -> None:
    # Neither changes what is trained and pushed, and both take their time.
    private, public = key_pair()
    signed = QUICK + "  sign_key_env: RELEASE_KEY\n"
    quick = pipeline.settings.replace(SETTINGS, signed)
    (pipeline.folder / "quick.yaml").write_text(quick)
    argv = emulation("--emulate-forked", "--steps", "4", settings="quick.yaml")
    screen = emulate(pipeline, argv, RELEASE_KEY=private.decode())
    for step in STEPS:
        if step != "LatestBlessedModel":
            assert f"{step} executed" in screen
    assert re.search(r"^Trainer +executed +\d.* s$", screen, re.MULTILINE)
    assert re.search(r"^Log of each step: emulated/logs/.*-STEP\.log$", screen, re.MULTILINE)
    local = weights(pipeline.output / "serving_model")
    emulated = weights(pipeline.folder / "emulated" / "serving_model")
    assert local.keys() == emulated.keys()
    for name, value in local.items():
        np.testing.assert_array_equal(value, emulated[name], err_msg=name)
    # Signed by the task, as the lineage says; its settings are those of the other run.
    release = find_release(str(pipeline.folder / "emulated" / "serving_model"))
    verification = seals.Verification(signature=True, public_key=public)
    assert seals.verify(release, verification) == []
    recorded = []
    for output in (pipeline.output, pipeline.folder / "emulated"):
        with lineage.locate(str(output)).open() as store:
            trace = lineage.trace(store, "release:1")
        signed = [fact.value for fact in trace.facts if fact.name == "signed_by"]
        of_emulated = output != pipeline.output
        assert signed == [model_signatures.key_identity(public)] * of_emulated
        [settings] = [s.execution.recorded for s in trace.steps if s.execution.recorded]
        recorded.append(json.loads(settings))
        assert recorded[-1].pop("dataset")["path"].startswith(("hf://", str(pipeline.folder)))
        del recorded[-1]["serving"], recorded[-1]["evaluation"]
    assert recorded[0] == recorded[1]


def reproduce(pipeline: Pipeline, *flags: str) -> subprocess.CompletedProcess[str]:
    places = ("--store", str(pipeline.output), "--into", str(pipeline.folder / "again"))
    return subprocess.run(
        [sys.executable, "-m", "pipeline.reproduce", "release:1", *places, *flags],
        cwd=pipeline.project,
        env=pipeline.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_what_a_release_takes_to_be_made_again_is_said(
    pipeline: Pipeline, first_screen: str
) -> None:
    done = reproduce(pipeline, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^  ([a-z ]+?)  +(same|other|unknown)  ", done.stdout, re.MULTILINE)
    names = ("data", "base weights", "code", "packages", "processor")
    assert found == [(name, "same") for name in names]
    other = pipeline.folder / "served_otherwise"
    shutil.copytree(pipeline.folder / "served", other)
    (other / "train.parquet").unlink()
    done = reproduce(pipeline, "--dataset", str(other))
    assert done.returncode == 2
    assert "Nothing was run; not the same as then: data. --anyway" in done.stdout
    assert "--dataset FOLDER, with the data as it was" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_release_made_again_is_the_same(pipeline: Pipeline, first_screen: str) -> None:
    done = reproduce(pipeline, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["same"]
    assert all(network["most"] == 0 for network in answer["weights"])
    assert answer["losses"]["pairs"] > 0
    assert answer["losses"]["most"] == 0


# Takes the machines away before anything is done, in the middle, and when only the export is left.
_SPOT_MARKET = """
import functools, glob, sys
import runner_vertex
from pipeline.vertex.emulation import custom_jobs
def market(number):
    def taken_away(seconds):
        files = glob.glob("spot/checkpoints/*/ckpt-*.index")
        steps = [int(f.removesuffix(".index").rpartition("-")[2]) for f in files]
        return number <= 3 and max([0, *steps]) >= 2 * number - 2
    return custom_jobs.Offer(taken_away=taken_away)
custom_jobs.EmulatedJobs = functools.partial(custom_jobs.EmulatedJobs, market=market)
sys.exit(runner_vertex.main())
"""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_training_whose_machines_are_taken_away_three_times_ends_with_the_same_weights(
    pipeline: Pipeline, first_screen: str
) -> None:
    screen = emulate(
        pipeline,
        emulation("--steps", "4", "--spot", "true", "--accelerator", "none", folder="spot"),
        program=("-c", _SPOT_MARKET),
        PYTHONPATH=str(pipeline.project),
    )
    hours = re.search(r"^Trained on: (.+)$", screen, re.MULTILINE)
    assert hours is not None, screen
    assert re.fullmatch(r"0\.\d+ h of 1 x n1-standard-16 \(Spot\), taken away 3 times", hours[1])
    local = weights(pipeline.output / "serving_model")
    emulated = weights(pipeline.folder / "spot" / "serving_model")
    for name, value in local.items():
        np.testing.assert_array_equal(value, emulated[name], err_msg=name)
    lineage = subprocess.run(
        [sys.executable, "-m", "pipeline.lineage", "--store", "spot", "trace", "latest"],
        cwd=pipeline.folder,
        env={**os.environ, "PYTHONPATH": str(pipeline.project)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert hours[1] in lineage.stdout, lineage.stdout + lineage.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_emulated_vertex_run_finds_the_latest_blessed_model(
    pipeline: Pipeline, first_screen: str
) -> None:
    emulate(pipeline, emulation("--emulate-forked", "--steps", "4"))
    screen = emulate(pipeline, emulation("--emulate-forked", "--steps", "3"))
    for step in STEPS[: STEPS.index("Trainer")]:
        assert f"{step} cached" in screen
    assert "Trainer executed" in screen
    assert re.search(r"Held-out loss: 0\.\d+ model \d+ -> ", screen)
    assert "Pushed: version 2 in emulated/serving_model" in screen
    pages = re.findall(r"^(?:Dataset|Evaluation): (.+\.html)$", screen, re.MULTILINE)
    assert [(pipeline.folder / page).is_file() for page in pages] == [True, True]


QUICK = (
    SETTINGS.replace("num_samples: 2", "num_samples: 0")
    + """
serving:
  canary: false
"""
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_of_a_schedule_do_what_is_new_and_are_told_what_drifted(
    project: Path, tmp_path: Path
) -> None:
    settings = QUICK + SMALL_MODEL + "  start_from: latest_blessed\ndrift:\n  fail_on_drift: true\n"
    weekly = Pipeline(tmp_path, "set", project=project, settings=settings)
    [shard, *_] = sorted((REPO_ROOT / "data" / "creatures" / "data").glob("*.parquet"))
    rows = pq.read_table(shard).to_pylist()
    (tmp_path / "set").mkdir()
    argv = emulation(
        *("--emulate-forked", "--steps", "2", "--schedule", "0 3 * * 1"), dataset="set"
    )

    def run(status: int = 0) -> dict[str, str]:
        """What became of every step, in a word."""
        screen = emulate(weekly, argv, status=status)
        found = re.findall(
            r"^ +(\w[\w-]*) (executed|skipped|resolved|cached)\b", screen, re.MULTILINE
        )
        return dict(found) | {"": screen}

    def week(count: int, other_language: int = 0, status: int = 0) -> dict[str, str]:
        taken = [dict(row) for row in rows[:count]]
        for number, row in enumerate(taken[:other_language]):
            row["text"] = f"una criatura dibujada con alas verdes, dibujo {number}"
        pq.write_table(pa.Table.from_pylist(taken), tmp_path / "set" / "train.parquet")
        return run(status)

    def drift() -> list[dict[str, Any]]:
        """What the steps of all runs have compared."""
        files = (tmp_path / "emulated").glob("*/*/CaptionValidator_*/anomalies/drift.json")
        return [json.loads(path.read_text()) for path in sorted(files, key=os.path.getmtime)]

    first = week(60)
    assert first["DatasetDone"] == "executed"
    assert drift() == []
    again = run()
    assert {again[step] for step in again if step.startswith("StartingModel")} == {"resolved"}
    done = {step: state for step, state in again.items() if state == "executed"}
    assert done == {"DatasetChange": "executed"}
    assert {"CaptionExampleGen", "Trainer", "ServingPusher", "DatasetDone"} <= {
        step for step, state in again.items() if state == "skipped"
    }

    # A week that drifted fails, and so does the same one again: it was not done.
    for tries in (1, 2):
        said = week(60, other_language=30, status=1)
        assert said["DatasetChange"] == "executed"
        assert "CaptionValidator failed: the dataset has drifted from" in said[""]
        assert "Trainer" not in said
        compared = drift()
        assert len(compared) == tries
        assert {"criatura", "dibujo"} <= {word for word, _ in compared[-1]["rows"]["new_words"]}
        assert compared[-1]["rows"]["recaptioned"] == 30
    mended = week(64)
    assert mended["Trainer"] == mended["DatasetDone"] == "executed"
    assert drift()[-1]["rows"]["pictures_added"] == 4
    assert run()["Trainer"] == "skipped"

    store = housekeeping.open_store(str(tmp_path / "emulated"), read_only=True)
    [before, now] = store.get_artifacts_by_type("ExampleAnomalies")
    assert "drift" not in before.custom_properties
    assert now.custom_properties["drift"].string_value == "none"
    [report] = store.get_artifacts_by_type("components.DatasetReport")[1:]
    page = Path(report.uri, "dataset.html").read_text()
    assert "<td>Words</td>" in page
    assert "No statistics of both could be compared" not in page


# Every process of the run notes at its end what it was and what it had imported.
_NOTE = """
import atexit, json, os, sys
def note():
    with open(os.path.join(os.path.dirname(__file__), f"{os.getpid()}.json"), "w") as f:
        json.dump([sys.argv, sorted(sys.modules)], f)
atexit.register(note)
"""
_WATCHED = """
import os, sys
import runner_vertex
from pipeline.vertex.emulation import emulator
unwatched = emulator.container_environment
def watched(code, home):
    found = unwatched(code, home)
    return {**found, "PYTHONPATH": os.pathsep.join([found["PYTHONPATH"], os.environ["NOTES"]])}
emulator.container_environment = watched
sys.exit(runner_vertex.main())
"""


@dataclasses.dataclass(frozen=True)
class Watched:
    """A run in fresh processes.

    Attributes:
        screen: What it said.
        modules: What the processes of each executor had imported at their end.
    """

    screen: str
    modules: Mapping[str, set[str]]


@pytest.fixture(scope="module")
def workers_run(pipeline: Pipeline, first_screen: str) -> Watched:
    notes = pipeline.folder / "notes"
    notes.mkdir()
    (notes / "sitecustomize.py").write_text(_NOTE)
    screen = emulate(
        pipeline,
        emulation("--steps", "4", "--workers", "2", folder="workers"),
        program=("-c", _WATCHED),
        PYTHONPATH=str(pipeline.project),
        NOTES=str(notes),
    )
    modules: dict[str, set[str]] = {}
    for path in notes.glob("*.json"):
        argv, names = json.loads(path.read_text())
        if "--executor_class_path" in argv:
            executor = argv[argv.index("--executor_class_path") + 1].rpartition(".")[0]
            modules.setdefault(executor, set()).update(names)
    return Watched(screen, modules)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_emulated_vertex_run_in_fresh_processes_and_on_two_workers(
    pipeline: Pipeline, workers_run: Watched
) -> None:
    assert "Trainer executed" in workers_run.screen
    log = (pipeline.folder / "workers" / "logs" / "custom-job-1-worker-0.log").read_text()
    assert "Training with 2 workers" in log
    local = weights(pipeline.output / "serving_model")
    emulated = weights(pipeline.folder / "workers" / "serving_model")
    for name, value in local.items():
        np.testing.assert_allclose(value, emulated[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_what_a_step_imports_while_it_runs_is_in_the_hash_of_its_code(
    workers_run: Watched,
) -> None:
    executors = {name for name in workers_run.modules if name.startswith("components.")}
    assert executors == {
        f"components.{path.parent.name}.executor"
        for path in (REPO_ROOT / "components").glob("*/executor.py")
    } | {"components.diffusion_trainer.custom_job"}
    for executor in executors:
        ours = {name for name in workers_run.modules[executor] if code_version._source(name)}
        hashed = code_version.imported_modules(executor)
        if "diffusion_trainer" in executor:
            hashed |= code_version.imported_modules("trainer.run_fn")
        assert ours - code_version._WITHOUT_EFFECT <= hashed, executor


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_emulated_vertex_run_in_a_bucket(
    pipeline: Pipeline, first_screen: str, tmp_path: Path
) -> None:
    with LoopbackStorage(tmp_path) as storage:
        pictures = pipeline.folder / "served" / "train.parquet"
        storage.write("pictures/train.parquet", pictures.read_bytes())
        flags = ("--pipeline-root", "gs://bucket/sdft", "--emulate-forked", "--steps", "4")
        argv = emulation(*flags, dataset="gs://bucket/pictures", folder="bucket")
        screen = emulate(pipeline, argv, **storage.environment)
        assert "Pushed: version 1 in gs://bucket/sdft/serving_model" in screen
        prefix = "sdft/serving_model/"
        for name in storage.names():
            if name.startswith(prefix) and not name.endswith("/"):
                path = tmp_path / "pushed" / name.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read(name))
    local, pushed = weights(pipeline.output / "serving_model"), weights(tmp_path / "pushed")
    for name, value in local.items():
        np.testing.assert_array_equal(value, pushed[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_week_goes_on_from_the_week_before(project: Path, tmp_path: Path) -> None:
    settings = SETTINGS + SMALL_MODEL + "  start_from: latest_blessed\n"
    weekly = Pipeline(tmp_path, "set", project=project, settings=settings)
    [shard, *_] = sorted((REPO_ROOT / "data" / "creatures" / "data").glob("*.parquet"))
    rows = pq.read_table(shard)
    (tmp_path / "set").mkdir()

    def week(count: int, *flags: str) -> str:
        pq.write_table(rows.slice(0, count), tmp_path / "set" / "train.parquet")
        return weekly.run("--steps", "2", *flags)

    def lineage(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipeline.lineage", "--store", str(weekly.output)]
        return subprocess.run(
            [*command, *arguments], cwd=project, capture_output=True, text=True, check=True
        ).stdout

    assert "starts from the base weights: no model that was trained" in week(60)
    said = week(75)
    found = re.search(r"Training starts from release 1, model (\d+) \(model.start_from", said)
    assert found is not None
    [first, second] = weekly.store().get_artifacts_by_type("Model")
    assert int(found[1]) == first.id
    manifests = [
        json.loads(Path(model.uri, "Format-Serving", "manifest.json").read_text())
        for model in (first, second)
    ]
    assert manifests[0]["started_from"] == {}
    assert manifests[1]["started_from"]["training_id"] == manifests[0]["training_id"]
    summary = json.loads((weekly.output / "report" / "summary.json").read_text())
    assert summary["baseline"] == f"model {first.id}"
    assert summary["started_from"] == f"started from, model {first.id}"
    # What the first one exported is what the second one begins with, as it is judged.
    models = [
        tf.saved_model.load(str(Path(model.uri, "Format-Serving", "diffusion_model")))
        for model in (first, second)
    ]
    weights = [np.concatenate([v.numpy().ravel() for v in m._variables]) for m in models]
    assert 0 < np.abs(weights[0] - weights[1]).max() < 0.1
    trace = lineage("trace", "release:2")
    assert f"release 1, artifact {first.id} (" in trace
    assert "started from" in trace
    fingerprints = re.findall(r"earlier_dataset_fingerprint +([0-9a-f]+)", trace)
    assert len(fingerprints) == 1
    touched = lineage("impact", fingerprints[0])
    assert len(re.findall(r"made of it", touched)) >= 2

    again = week(75)
    assert "Nothing to do: every step is up to date; no run was started" in again
    # Another try is from the same start, and only a change of the data is another week.
    assert f"starts from release 1, model {first.id} " in week(75, "--learning-rate", "2e-3")
    assert re.search(r"Training starts from release [23], model ", week(80))
    said = week(80, "--start-from", "release:1")
    assert f"Training starts from release 1, model {first.id} (model.start_from: release:1)" in said


@pytest.mark.slow
def test_training_outside_a_pipeline_makes_the_same_model(
    pipeline: Pipeline, first_screen: str, tmp_path: Path
) -> None:
    [latents] = (pipeline.output / "artifacts" / "LatentGen" / "latents").iterdir()
    command = [sys.executable, "-m", "pipeline.train", "--steps", "4"]
    flags = ["--config", str(pipeline.folder / "settings.yaml"), "--latents", str(latents)]
    subprocess.run(
        [*command, *flags, "--output", str(tmp_path / "run")],
        cwd=pipeline.project,
        check=True,
        timeout=900,
    )
    made = weights(tmp_path / "run" / "model" / "Format-Serving", version="")
    for name, value in weights(pipeline.output / "serving_model").items():
        np.testing.assert_array_equal(value, made[name], err_msg=name)


def test_an_unchanged_run_executes_nothing(pipeline: Pipeline, first_screen: str) -> None:
    before = pipeline.completed()
    screen = pipeline.run("--steps", "4")
    assert "Nothing to do" in screen
    assert "Loading TensorFlow" not in screen
    assert [s for s in pipeline.completed() if s != "LatestBlessedModel"] == [
        s for s in before if s != "LatestBlessedModel"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["caption-files", "repeats", "pictures"])
def test_three_pictures_end_in_a_pushed_model_with_the_defaults(
    project: Path, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "set" / ("10_sks creature" if form == "repeats" else ".")
    folder.mkdir(parents=True)
    [shard, *_] = sorted((REPO_ROOT / "data" / "creatures" / "data").glob("*.parquet"))
    for row in pq.read_table(shard).slice(0, 3).to_pylist():
        name = folder / row["text"][:40]
        name.with_suffix(".png").write_bytes(row["image"]["bytes"])
        if form == "caption-files":
            name.with_suffix(".txt").write_text(row["text"])
    given = ["--caption", "a drawing of sks"] if form == "pictures" else []
    pipeline = Pipeline(tmp_path, str(tmp_path / "set"), project=project, settings=SMALL_MODEL)
    screen = pipeline.run("--steps", "20", *given)
    assert "2 examples to train on, 1 held out." in screen
    assert f"taken for {form}" in screen
    assert (pipeline.output / "serving_model" / "diffusion_model" / "1").is_dir()
    page = (pipeline.output / "report" / "evaluation.html").read_text()
    assert "Unsure" in page


def draw_kites(folder: Path, count: int) -> None:
    """Pictures of a thing that no base weights have seen: a striped kite, somewhere."""
    folder.mkdir()
    rng = np.random.default_rng(count)
    for index in range(count):
        image = Image.new("RGB", (96, 96), tuple(rng.integers(60, 256, 3).tolist()))
        x, y, size = (int(n) for n in (*rng.integers(36, 60, 2), rng.integers(20, 34)))
        draw = ImageDraw.Draw(image)
        corners = [(x, y - size), (x + size, y), (x, y + size), (x - size, y)]
        draw.polygon(corners, fill=(130, 30, 160), outline=(20, 0, 30))
        draw.rectangle((x - size // 2, y - 4, x + size // 2, y + 4), fill=(250, 220, 40))
        image.save(folder / f"{index}.png")


@pytest.mark.slow
def test_five_pictures_of_a_thing_and_what_it_is_one_of(project: Path, tmp_path: Path) -> None:
    draw_kites(tmp_path / "kite", 5)
    draw_kites(tmp_path / "others", 3)
    prior = "\nprior: {pictures: 6, scenes: [at night], num_compared: 4, max_distance: 50.0}\n"
    pipeline = Pipeline(
        tmp_path, str(tmp_path / "kite"), project=project, settings=SMALL_MODEL + prior
    )
    subject = ("--caption", "a sks kite", "--prior", "a kite", "--steps", "6")

    def executed(screen: str) -> dict[str, str]:
        pattern = r"^  (ClassPictures|ClassLatentGen|LatentGen|Trainer) +(\w+) "
        return dict(re.findall(pattern, screen, flags=re.MULTILINE))

    screen = pipeline.run(*subject)
    assert "4 examples to train on, 1 held out." in screen
    assert {*executed(screen).values()} == {"executed"}
    manifest = json.loads(next(pipeline.output.rglob("Format-Serving/manifest.json")).read_text())
    assert (manifest["prior"]["counts"], manifest["prior"]["weight"]) == ({"train": 6}, 1.0)
    prompts = ["a sks kite", "a sks kite at night", "a kite", "a kite at night"]
    assert manifest["validation"]["prompts"] == prompts
    assert manifest["prompts_are_captions"]
    [history] = pipeline.output.glob("artifacts/Trainer/model_run/*/history.jsonl")
    assert all(json.loads(line)["prior_loss"] > 0 for line in history.read_text().splitlines())
    summary = json.loads((pipeline.output / "report" / "summary.json").read_text())
    assert summary["class_distance"] > 0
    page = (pipeline.output / "report" / "evaluation.html").read_text()
    for words in ("Unsure", "Is its class still known?", "prior.max_distance", *prompts):
        assert words in page

    # Other settings of the training draw nothing again.
    screen = pipeline.run(*subject, "--learning-rate", "2e-3")
    expected = {"ClassPictures": "cached", "ClassLatentGen": "cached", "LatentGen": "cached"}
    assert executed(screen) == {**expected, "Trainer": "executed"}
    assert "Nothing to do" in pipeline.run(*subject, "--learning-rate", "2e-3")
    screen = pipeline.run(*subject, "--class-pictures", str(tmp_path / "others"))
    assert executed(screen)["ClassPictures"] == "executed"
    *_, latest = sorted(
        pipeline.output.glob("artifacts/Trainer/model/*"), key=lambda path: int(path.name)
    )
    manifest = json.loads((latest / "Format-Serving" / "manifest.json").read_text())
    assert sum(manifest["prior"]["counts"].values()) == 3


@pytest.mark.slow
def test_a_training_setting_executes_from_the_trainer_on(
    pipeline: Pipeline, first_screen: str
) -> None:
    statuses = pipeline.statuses(pipeline.run("--steps", "6"))
    for step in STEPS[: STEPS.index("Trainer")]:
        assert statuses[step] == "cached"
    for step in ("Trainer", "LossScorer", "Evaluator", "EvaluationReport", "ServingPusher"):
        assert statuses[step] == "executed"


@pytest.mark.slow
def test_a_run_killed_ten_times_repeats_no_finished_step(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    write_dataset(folder / "dataset")
    pipeline = Pipeline(folder, "dataset")
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(
            [*pipeline.command, "--steps", "40"],
            cwd=pipeline.folder,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + rng.uniform(15, 120)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    pipeline.run("--steps", "40")
    completed = [s for s in pipeline.completed() if s != "LatestBlessedModel"]
    assert sorted(completed) == sorted(set(STEPS) - {"LatestBlessedModel"})
    states = {e.last_known_state for e in pipeline.store().get_executions()}
    assert mlmd.Execution.RUNNING not in states
    assert json.loads((pipeline.output / "serving_model" / "releases" / "1.json").read_text())


@pytest.mark.slow
def test_a_run_told_to_stop_while_it_trains_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    write_dataset(folder / "dataset")
    pipeline = Pipeline(folder, "dataset")
    command = [*pipeline.command, "--steps", "400"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        while not list((pipeline.output / "checkpoints").glob("*/ckpt-4.index")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        screen, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    [saved] = re.findall(r"Interrupted: .* saved step (\d+) of 400", screen)
    assert "Traceback" not in screen
    assert f"Resuming at step {saved} of 400" in pipeline.run("--steps", "400")
    assert set(pipeline.completed()) == set(STEPS)
