"""What a clean-up removes of real stores with small files, killed wherever it may be."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import clean, cleaning, housekeeping, lineage
from pipeline.cleaning import _TRAINING_ID as TRAINING_ID
from pipeline.lineage import cli
from pipeline.lineage.model import CONTENT_DIGEST, REMOVED_ON
from pipeline.needs import Policy
from storage import filesystem

REPO_ROOT = Path(__file__).resolve().parents[2]
LIVE, DELETED = mlmd.Artifact.LIVE, mlmd.Artifact.DELETED
RUNS = ("one", "two", "three", "four", "five", "six", "seven")


def training_id(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()[:16]


class Weeks:
    """An output folder in which a run was done every week, each on other pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = housekeeping.open_store(str(folder))
        self._types: dict[tuple[str, str], int] = {}
        self.artifacts: dict[str, mlmd.Artifact] = {}

    def copied(self, folder: Path) -> Weeks:
        shutil.copytree(self.folder, folder)
        housekeeping.settle_in(str(folder), str(folder / "serving_model"))
        weeks = Weeks(folder)
        weeks._types = dict(self._types)
        weeks.artifacts = {
            name: weeks.store.get_artifacts_by_id([made.id])[0]
            for name, made in self.artifacts.items()
        }
        return weeks

    def _type(self, kind: str, name: str) -> int:
        if (kind, name) not in self._types:
            put = getattr(self.store, f"put_{kind}_type")
            proto = {"artifact": mlmd.ArtifactType, "execution": mlmd.ExecutionType}.get(
                kind, mlmd.ContextType
            )
            self._types[kind, name] = put(proto(name=name))
        return self._types[kind, name]

    def step(
        self,
        run: str,
        node: str,
        outputs: dict[str, tuple[str, dict[str, object]]],
        inputs: dict[str, str] | None = None,
        state: int = mlmd.Execution.COMPLETE,
        cached: bool = False,
    ) -> None:
        """Records a step; what it left is called `<run>/<key>` from then on."""
        [number] = self.store.put_executions(
            [
                mlmd.Execution(
                    type_id=self._type("execution", node),
                    last_known_state=mlmd.Execution.CACHED if cached else state,
                )
            ]
        )
        events = []
        for key, (kind, properties) in outputs.items():
            name = f"{run}/{key}"
            if not cached:
                uri = self.folder / "artifacts" / node / key / str(number)
                files = {
                    "Model": ["Format-Serving/manifest.json", "Format-Serving/decoder/saved_model"],
                    "Examples": ["Split-train/data.gz", "rows/train-00000.jsonl"],
                }.get(kind, ["file"])
                for file in files:
                    (uri / file).parent.mkdir(parents=True, exist_ok=True)
                    (uri / file).write_bytes(b"x" * 1000)
                made = mlmd.Artifact(
                    type_id=self._type("artifact", kind), type=kind, uri=str(uri), state=LIVE
                )
                for field, value in properties.items():
                    which = "int_value" if isinstance(value, int) else "string_value"
                    setattr(made.custom_properties[field], which, value)
                if kind == "Examples":
                    digest = filesystem.content_digest(str(uri))
                    made.custom_properties[CONTENT_DIGEST].string_value = digest
                [made.id] = self.store.put_artifacts([made])
                self.artifacts[name] = made
            events.append((name, mlmd.Event.OUTPUT, key))
        events += [(name, mlmd.Event.INPUT, key) for key, name in (inputs or {}).items()]
        self.store.put_events(
            [
                mlmd.Event(
                    execution_id=number,
                    artifact_id=self.artifacts[name].id,
                    type=kind,
                    path=mlmd.Event.Path(steps=[mlmd.Event.Path.Step(key=key)]),
                )
                for name, kind, key in events
            ]
        )
        for kind, name in (("pipeline_run", run), ("node", f"sd.{node}")):
            context = self.store.get_context_by_type_and_name(kind, name)
            if context is None:
                made_context = mlmd.Context(type_id=self._type("context", kind), name=name)
                [context_id] = self.store.put_contexts([made_context])
            else:
                context_id = context.id
            self.store.put_attributions_and_associations(
                [], [mlmd.Association(execution_id=number, context_id=context_id)]
            )

    def week(
        self,
        run: str,
        blessed: bool = True,
        release: bool = True,
        baseline: str | None = None,
        stops_after: str = "",
    ) -> None:
        """A run: pictures, latents, a model, its judgement, and a release where it is blessed."""
        training = training_id(run)
        self.step(run, "Gen", {"examples": ("Examples", {})})
        self.step(run, "LatentGen", {"latents": ("Examples", {})}, {"examples": f"{run}/examples"})
        if stops_after == "LatentGen":
            self.step(run, "Trainer", {}, state=mlmd.Execution.FAILED)
            self.checkpoints(training)
            return
        self.step(
            run,
            "Trainer",
            {"model": ("Model", {TRAINING_ID: training}), "model_run": ("ModelRun", {})},
            {"examples": f"{run}/latents"},
        )
        self.checkpoints(training)
        model = self.artifacts[f"{run}/model"].id
        compared = {"baseline_model": f"{baseline}/model"} if baseline else {}
        self.step(
            run,
            "Scorer",
            {"scores": ("Examples", {})},
            {"latents": f"{run}/latents", "model": f"{run}/model", **compared},
        )
        judged = {"blessed": int(blessed), "current_model_id": model}
        self.step(
            run,
            "Evaluator",
            {"blessing": ("ModelBlessing", judged)},
            {"examples": f"{run}/scores", "model": f"{run}/model", **compared},
        )
        serving = self.folder / "serving_model"
        properties: dict[str, object] = {"pushed": 0}
        if blessed and release:
            version = str(model)
            for name in ("text_encoder", "diffusion_model", "decoder"):
                (serving / name / version).mkdir(parents=True)
                (serving / name / version / "saved_model.pb").touch()
            (serving / "releases").mkdir(exist_ok=True)
            (serving / "releases" / f"{version}.json").write_text("{}")
            properties = {"pushed_version": version, "pushed_destination": str(serving)}
        self.step(
            run,
            "Pusher",
            {"pushed_model": ("PushedModel", properties)},
            {"model": f"{run}/model", "model_blessing": f"{run}/blessing"},
        )

    def checkpoints(self, training: str) -> Path:
        folder = self.folder / "checkpoints" / training
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoint", "ckpt-1.data"):
            (folder / name).write_bytes(b"x" * 1000)
        return folder

    def prune(self, run: str) -> None:
        version = self.artifacts[f"{run}/model"].id
        (self.folder / "serving_model" / "releases" / f"{version}.json").unlink()

    def clean(self, *flags: str) -> int:
        return clean.main(["--output", str(self.folder), *flags])

    def gone(self) -> set[str]:
        """Names of the artifacts that are not live; the files of all others must be whole."""
        found = set()
        for name, made in self.artifacts.items():
            [stored] = self.store.get_artifacts_by_id([made.id])
            files = sorted(
                p.relative_to(made.uri).as_posix() for p in Path(made.uri).rglob("*") if p.is_file()
            )
            if stored.type not in ("Model", "Examples"):
                assert files == ["file"], name
            elif stored.state == LIVE:
                assert len(files) == 2, name
            else:
                found.add(name)
                if stored.state == DELETED:
                    assert files in (["Format-Serving/manifest.json"], ["rows/train-00000.jsonl"])
        return found

    def trainings(self) -> set[str]:
        folder = self.folder / "checkpoints"
        names = {path.name for path in folder.iterdir()}
        return {run for run in RUNS if training_id(run) in names}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Weeks:
    """One and five are releases; two and four are not blessed; the release of three is gone."""
    weeks = Weeks(tmp_path_factory.mktemp("made"))
    weeks.week("one")
    weeks.week("two", blessed=False, baseline="one")
    weeks.week("three", baseline="one")
    weeks.prune("three")
    weeks.week("four", blessed=False, baseline="three")
    weeks.week("five", baseline="three")
    return weeks


@pytest.fixture
def weeks(made: Weeks, tmp_path: Path) -> Weeks:
    return made.copied(tmp_path / "out")


TWO = {"two/examples", "two/latents", "two/model", "two/scores"}
FOUR = {name.replace("two", "four") for name in TWO}
THREE = {name.replace("two", "three") for name in TWO}


def test_releases_blessed_models_the_latest_and_their_ancestors_stay(
    weeks: Weeks, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(weeks.folder.rglob("*"))
    assert weeks.clean("--dry-run") == 0
    assert sorted(weeks.folder.rglob("*")) == before
    assert weeks.gone() == set()
    told = capsys.readouterr().out
    assert "would be removed: 14 folders" in told
    assert "Nothing was removed." in told

    assert weeks.clean() == 0
    # A blessed model stays with what it was made of, though not with what it was judged by.
    assert weeks.gone() == TWO | FOUR | {"three/scores"}
    assert weeks.trainings() == set()
    told = capsys.readouterr().out
    assert "Trainer/model/" in told
    assert "not blessed, and not the latest" in told
    assert weeks.clean() == 0
    assert "removed: nothing" in capsys.readouterr().out


def test_with_a_number_of_runs_blessed_models_stay_that_are_releases_or_the_latest(
    weeks: Weeks,
) -> None:
    weeks.week("six", blessed=False, baseline="five")
    assert weeks.clean("--keep-runs", "1", "--keep-checkpoints") == 0
    assert weeks.gone() == TWO | FOUR | THREE
    assert weeks.trainings() == {"one", "five", "six"}


def test_what_a_kept_run_was_compared_with_stays(weeks: Weeks) -> None:
    assert weeks.clean("--keep-runs", "2") == 0
    # Four was compared with three, but not with what that was made of.
    assert weeks.gone() == TWO | (THREE - {"three/model"})


def test_a_run_that_did_not_end_keeps_what_it_goes_on_from(weeks: Weeks) -> None:
    weeks.week("six", stops_after="LatentGen")
    os.utime(weeks.checkpoints(training_id("six")))
    assert weeks.clean("--keep-runs", "1") == 0
    assert not any(name.startswith("six") for name in weeks.gone())
    assert not any(name.startswith("five") for name in weeks.gone())
    assert weeks.trainings() == {"six"}

    # Once a later training is done, nobody goes on from it.
    past = time.time() - 3600
    for path in weeks.checkpoints(training_id("six")).iterdir():
        os.utime(path, (past, past))
    weeks.week("seven")
    assert weeks.clean("--keep-runs", "1") == 0
    assert {"six/examples", "six/latents"} <= weeks.gone()
    assert weeks.trainings() == set()


def test_a_search_stays_until_the_training_that_it_was_for_is_done(weeks: Weeks) -> None:
    search = "search-" + training_id("six")
    results = weeks.checkpoints(search)
    weeks.week("six", stops_after="LatentGen")
    assert weeks.clean("--keep-runs", "1") == 0
    assert results.is_dir()

    past = time.time() - 3600
    for path in results.iterdir():
        os.utime(path, (past, past))
    weeks.week("seven")
    assert weeks.clean("--keep-runs", "1") == 0
    assert not results.exists()


def test_a_serving_directory_that_is_not_there_takes_no_release_with_it(weeks: Weeks) -> None:
    serving = weeks.folder / "serving_model"
    serving.rename(weeks.folder / "elsewhere")
    store = housekeeping.open_store(str(weeks.folder))
    plan = cleaning.make_plan(store, str(weeks.folder), Policy(1, keep_blessed=False))
    assert not {r.path for r in plan.removals} & {weeks.artifacts["one/model"].uri}


def test_a_model_that_was_trained_on_from_another_needs_that_one_alone(tmp_path: Path) -> None:
    weeks = Weeks(tmp_path)
    weeks.week("one", blessed=False)
    weeks.step("two", "LatentGen", {"latents": ("Examples", {})})
    inputs = {"examples": "two/latents", "base_model": "one/model"}
    # What a search started from is no more than what the training did.
    weeks.step("two", "Tuner", {"found": ("HyperParameters", {})}, inputs)
    inputs["hyperparameters"] = "two/found"
    weeks.step("two", "Trainer", {"model": ("Model", {TRAINING_ID: "0" * 16})}, inputs)
    weeks.step("two", "Pusher", {"pushed_model": ("PushedModel", {})}, {"model": "two/model"})
    weeks.step("three", "Trainer", {"model": ("Model", {})}, {"base_model": "two/model"})
    weeks.step("three", "Pusher", {"pushed_model": ("PushedModel", {})}, {"model": "three/model"})
    assert weeks.clean("--keep-runs", "1") == 0
    assert weeks.gone() == {
        *("one/examples", "one/latents", "one/scores", "one/model"),
        "two/latents",
    }


def test_the_lineage_says_what_was_removed_and_traces_all_the_same(
    weeks: Weeks, capsys: pytest.CaptureFixture[str]
) -> None:
    with lineage.locate(str(weeks.folder)).open() as store:
        before = lineage.trace(store, f"artifact:{weeks.artifacts['two/model'].id}")
    assert weeks.clean() == 0
    with lineage.locate(str(weeks.folder)).open() as store:
        after = lineage.trace(store, f"artifact:{weeks.artifacts['two/model'].id}")
        [model] = store.artifacts([weeks.artifacts["two/model"].id])
        [release] = store.artifacts([weeks.artifacts["one/model"].id])
    assert [s.execution.id for s in after.steps] == [s.execution.id for s in before.steps]
    assert model.shown_state.startswith("removed on 20")
    assert (release.shown_state, release.removed) == ("live", "")
    for of in (model, release):
        assert str(of.properties["checkpoints_removed_on"]).startswith("20")
    capsys.readouterr()
    store = ("--store", str(weeks.folder))
    assert cli.main([*store, "artifact", f"artifact:{model.id}"]) == 0
    assert f"removed on {model.removed}" in capsys.readouterr().out
    assert cli.main([*store, "trace", f"artifact:{model.id}"]) == 0
    said = capsys.readouterr().out
    assert f"removed on {model.removed}" in said
    assert "artifact  type      removed on" in said
    assert cli.main([*store, "export", f"artifact:{model.id}", "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert "<dt>removed since</dt>" in page
    assert f">Model {model.id}</a> on {model.removed}" in page


def test_the_next_run_does_not_take_back_what_is_there_in_part(weeks: Weeks) -> None:
    assert weeks.clean() == 0
    gone = weeks.gone()
    filesystem.content_digest.cache_clear()
    serving = str(weeks.folder / "serving_model")
    assert housekeeping.repair(str(weeks.folder), serving).returned == ()
    assert weeks.gone() == gone
    # From a copy that somebody made, it is.
    latents = weeks.artifacts["two/latents"]
    (Path(latents.uri) / "Split-train").mkdir()
    (Path(latents.uri) / "Split-train" / "data.gz").write_bytes(b"x" * 1000)
    filesystem.content_digest.cache_clear()
    assert housekeeping.repair(str(weeks.folder), serving).returned == (latents.uri,)
    [stored] = weeks.store.get_artifacts_by_id([latents.id])
    assert stored.state == LIVE
    assert REMOVED_ON not in stored.custom_properties


def test_what_lies_elsewhere_is_never_removed(weeks: Weeks, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    model = weeks.artifacts["two/model"]
    for uri in (str(precious), f"{weeks.folder}/artifacts/Trainer/model/../../../precious"):
        [stored] = weeks.store.get_artifacts_by_id([model.id])
        stored.uri = uri
        weeks.store.put_artifacts([stored])
        plan = cleaning.make_plan(weeks.store, str(weeks.folder), Policy())
        assert not [r for r in plan.removals if r.artifact and r.artifact.id == model.id]
    notes = weeks.folder / "checkpoints" / "lines"
    notes.mkdir()
    assert weeks.clean() == 0
    assert (precious / "file").is_file()
    assert notes.is_dir()


@pytest.mark.parametrize("call", range(0, 40, 5))
def test_an_end_at_any_step_leaves_what_is_needed_and_the_next_finishes_it(
    weeks: Weeks, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Ended at the n-th change of a file or of the store."""
    left = call

    def dies(function):
        def wrapped(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return function(*args, **kwargs)

        return wrapped

    store = housekeeping.open_store(str(weeks.folder))
    plan = cleaning.make_plan(store, str(weeks.folder), Policy())
    with monkeypatch.context() as patch:
        for name in ("remove", "rmdir", "rename"):
            patch.setattr(cleaning.os, name, dies(getattr(os, name)))
        patch.setattr(store, "put_artifacts", dies(store.put_artifacts))
        with pytest.raises(KeyboardInterrupt):
            cleaning.carry_out(store, plan)
    assert weeks.gone() <= TWO | FOUR | THREE
    # The run that comes next sees to its folder, and finds nothing to take back.
    filesystem.content_digest.cache_clear()
    report = housekeeping.repair(str(weeks.folder), str(weeks.folder / "serving_model"))
    assert report.returned == ()
    assert weeks.clean() == 0
    states = {a.state for a in weeks.store.get_artifacts()}
    assert states == {LIVE, DELETED}
    assert weeks.gone() >= TWO | FOUR
    assert list((weeks.folder / "checkpoints").iterdir()) == []


def test_a_training_is_named_as_the_trainer_names_it() -> None:
    executor = REPO_ROOT / "components" / "diffusion_trainer" / "executor.py"
    assert f'\nTRAINING_ID = "{TRAINING_ID}"\n' in executor.read_text()


def forked(function: Callable[[], object]) -> int:
    """A process that does something, with nothing to import; returns its id."""
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        function()
        os._exit(0)
    return pid


def test_kills_at_random_moments(weeks: Weeks) -> None:
    moments = random.Random(1)
    for _ in range(6):
        pid = forked(weeks.clean)
        time.sleep(moments.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert weeks.gone() <= TWO | FOUR | THREE
    assert weeks.clean() == 0
    assert weeks.gone() >= TWO | FOUR
    assert {a.state for a in weeks.store.get_artifacts()} == {LIVE, DELETED}


def test_a_clean_up_beside_a_run_or_another_is_refused(
    weeks: Weeks, capsys: pytest.CaptureFixture[str]
) -> None:
    held, write = os.pipe()

    def hold() -> None:
        with housekeeping.output_lock(str(weeks.folder)):
            os.write(write, b"held")
            time.sleep(60)

    holder = forked(hold)
    try:
        assert os.read(held, 4) == b"held"
        assert weeks.clean() == 2
        assert f"(process {holder}) is working in" in capsys.readouterr().err
        assert weeks.gone() == set()
        # To look is allowed.
        assert weeks.clean("--dry-run") == 0
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(held)
        os.close(write)


@pytest.mark.parametrize(
    ("output", "said"),
    [("gs://bucket/x", "not a folder on this machine"), ("nothing", "there is no run in")],
)
def test_a_folder_of_no_run_is_told_in_a_line(
    output: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = output if "://" in output else str(tmp_path / output)
    assert clean.main(["--output", where]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_moved_folder_is_looked_at_where_it_is(
    weeks: Weeks, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    there = tmp_path_factory.mktemp("there") / "moved"
    weeks.folder.rename(there)
    assert clean.main(["--output", str(there), "--dry-run"]) == 0
    assert "would be removed: 14 folders" in capsys.readouterr().out
