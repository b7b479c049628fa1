"""The real runner and command line on a small real TFX pipeline, killed and started again."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import small_pipeline
from ml_metadata.proto import metadata_store_pb2 as mlmd
from weekly_dataset import Dataset, check_changes

import runner_local
from pipeline import housekeeping, lineage, watch
from pipeline.config import resolve_dataset
from pipeline.lineage import history, text


@pytest.fixture
def flags(tmp_path, dataset):
    """Flags of a run that takes about 0.05 s for training."""
    return ("--dataset", str(dataset), "--output", str(tmp_path / "out"), "--steps", "5")


def executions(output: Path) -> list[tuple[str, str]]:
    """(component, state) of every execution but the resolver's, in order."""
    store = housekeeping.open_store(str(output), read_only=True)
    found = []
    for execution in sorted(store.get_executions(), key=lambda e: e.id):
        [node] = [c.name for c in store.get_contexts_by_execution(execution.id) if c.type == "node"]
        if not node.endswith(".Latest"):
            state = mlmd.Execution.State.Name(execution.last_known_state)
            found.append((node.rpartition(".")[2], state))
    return found


def ended(output: Path) -> list[tuple[str, ...]]:
    """What the lineage says of every run: status, and name, state and error of what failed."""
    with lineage.locate(str(output)).open() as store:
        return [
            (
                run.status.value,
                *(
                    f
                    for s in store.steps(run.id)
                    if s.error
                    for f in (s.node, s.state.value, s.error)
                ),
            )
            for run in store.runs()
        ]


def assert_whole(output: Path, steps: int) -> None:
    """Everything that the metadata calls live is there whole, and nothing else is."""
    store = housekeeping.open_store(str(output), read_only=True)
    live = {a.uri for a in store.get_artifacts() if a.state == mlmd.Artifact.LIVE}
    for artifact in store.get_artifacts():
        if artifact.type == "Model" and artifact.uri in live:
            assert len(list(Path(artifact.uri).iterdir())) == steps
    on_disk = {
        str(run)
        for component in (output / "artifacts").iterdir()
        for key in component.iterdir()
        if key.name != ".system"
        for run in key.iterdir()
    }
    assert on_disk == live


def test_first_run_executes_second_finds_everything_cached(zygote, flags, tmp_path):
    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    out = run.out()
    for name in ("Source", "Train", "Judge", "Publish"):
        assert f"{name} done in " in out
        assert [line.split()[:2] for line in out.splitlines() if line.startswith(f"  {name} ")] == [
            [name, "executed"]
        ]
    assert "Latest resolved in" in out
    assert "  reading " in out
    assert "  warning: a warning of ours" in out
    assert "Nothing to do" not in out
    assert "pushed" in out
    assert "noise" not in out
    assert run.err() == ""
    [log] = (tmp_path / "out" / "logs").iterdir()
    text = log.read_text()
    assert "native noise" in text
    assert "library noise" in text
    assert "Train done in" in text

    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    for name in ("Source", "Train", "Judge", "Publish"):
        assert [
            line.split()[:2] for line in run.out().splitlines() if line.startswith(f"  {name} ")
        ] == [[name, "cached"]]
    assert "Nothing to do: every step is up to date; no run was started" in run.out()
    assert "Loading TensorFlow" not in run.out()
    assert "pushed" in run.out()
    assert len(executions(tmp_path / "out")) == 4

    status, run = zygote.run(*flags[:-1], "6")
    assert status == 0
    assert "Source cached" in run.out()
    assert "Train done" in run.out()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def uris(output: Path) -> list[str]:
    """Where the lineage says that artifacts are, which it finds without writing anything."""
    before = contents(output)
    with lineage.locate(str(output)).open() as store:
        found = [artifact.uri for artifact in store.artifacts(store.artifact_types)]
        [pushed] = store.artifacts(store.artifacts_of_type("PushedModel"))
        [release] = (output / "serving_model" / "releases").iterdir()
        assert lineage.trace(store, str(release)).subject == pushed
    assert pushed.properties["pushed_destination"] == str(output / "serving_model")
    assert contents(output) == before
    return found


def test_a_folder_that_is_moved_or_copied_is_gone_on_with_where_it_is(
    zygote, tmp_path, write_dataset
):
    """The dataset lies in it, too, and the settings come out of it."""
    first, moved, copied = (tmp_path / name for name in ("first", "mo ved", "copied/é"))
    pictures = write_dataset(first / "pictures", 20)
    flags = ("--steps", "5", "--dataset")
    assert zygote.run(*flags, str(pictures), "--output", str(first))[0] == 0
    places = uris(first)

    first.rename(moved)
    assert uris(moved) == [str(moved / Path(place).relative_to(first)) for place in places]
    status, run = zygote.run("--config", str(moved / "config.yaml"))
    assert status == 0, run.err()
    assert "Nothing to do: every step is up to date." in run.out()
    assert not first.exists()
    shutil.copytree(moved, copied)
    uris(copied)
    shutil.rmtree(moved / "artifacts")
    shutil.rmtree(moved / "pictures")
    status, run = zygote.run(*flags, str(copied / "pictures"), "--output", str(copied))
    assert status == 0, run.err()
    assert "Nothing to do: every step is up to date." in run.out()
    assert_whole(copied, 5)
    for place in ("first", "mo ved"):
        assert not [
            name for name, text in contents(copied / "artifacts").items() if place.encode() in text
        ]
    with sqlite3.connect(copied / "metadata.sqlite") as connection:
        dump = "\n".join(connection.iterdump())
    assert str(first) not in dump
    assert str(moved) not in dump
    versions = [path.name for path in (copied / "serving_model" / "releases").iterdir()]
    assert len(versions) == 1


def test_what_is_gone_for_a_moment_runs_again_and_is_taken_back(zygote, flags, tmp_path):
    models = tmp_path / "out" / "artifacts" / "Train" / "model"
    assert zygote.run(*flags)[0] == 0
    models.rename(tmp_path / "away")
    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    assert "Train done" in run.out()
    assert "Judge cached" in run.out()
    shutil.rmtree(models)
    (tmp_path / "away").rename(models)
    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    assert "Nothing to do: every step is up to date." in run.out()


def test_a_step_that_runs_again_runs_its_consumers_only_if_its_output_differs(
    zygote, flags, tmp_path, write_dataset
):
    pictures = write_dataset(tmp_path / "pictures", 20)
    flags = (*flags, "--dataset", str(pictures))
    assert zygote.run(*flags)[0] == 0
    status, run = zygote.run(*flags, "--learning-rate", "0.01")
    assert status == 0, run.err()
    assert executions(tmp_path / "out")[4:] == [
        ("Source", "COMPLETE"),
        ("Train", "CACHED"),
        ("Judge", "CACHED"),
        ("Publish", "CACHED"),
    ]

    write_dataset(pictures, 21)
    status, run = zygote.run(*flags, "--learning-rate", "0.01")
    assert status == 0, run.err()
    assert executions(tmp_path / "out")[8:] == [
        (name, "COMPLETE") for name in ("Source", "Train", "Judge", "Publish")
    ]
    with lineage.locate(str(tmp_path / "out")).open() as store:
        why = lineage.why(store, "Train")
    assert why.explanation == "executed because this had changed: fingerprint of Source"


def test_verbose_shows_everything(zygote, flags, tmp_path):
    status, run = zygote.run(*flags, "--verbose")
    assert status == 0, run.err()
    assert "native noise" in run.err()
    assert "library noise" in run.out()
    [log] = (tmp_path / "out" / "logs").iterdir()
    assert "native noise" in log.read_text()


def test_failing_component_is_named_and_its_error_shown_whole(zygote, flags, tmp_path):
    status, run = zygote.run(*flags, "--batch-size", "13")
    assert status == 1
    assert "Train failed after" in run.out()
    assert "Traceback (most recent call last)" in run.out()
    assert "ValueError: thirteen pictures a step bring bad luck" in run.out()
    assert "Publish" not in run.out()
    assert executions(tmp_path / "out") == [("Source", "COMPLETE"), ("Train", "FAILED")]
    why = "ValueError: thirteen pictures a step bring bad luck"
    assert ended(tmp_path / "out") == [("failed", "Train", "failed", why)]
    status, run = zygote.run(*flags)
    assert status == 0
    assert "Source cached" in run.out()


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (
            small_pipeline.FULL_DISK_LEARNING_RATE,
            "No space left on device: make room there, or choose another folder with --output",
        ),
        (
            small_pipeline.WRONG_LEARNING_RATE,
            "that rate is wrong: give another by --learning-rate",
        ),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_line(zygote, flags, tmp_path, rate, line):
    status, run = zygote.run(*flags, "--learning-rate", str(rate))
    assert status == 1
    [failed] = [text for text in run.out().splitlines() if "failed" in text]
    assert failed.startswith("Source failed after ")
    assert failed.endswith(f": {line}")
    assert "Traceback" not in run.out() + run.err()
    [log] = (tmp_path / "out" / "logs").iterdir()
    assert "Traceback (most recent call last)" in log.read_text()
    assert executions(tmp_path / "out") == [("Source", "FAILED")]


def test_an_output_folder_that_cannot_be_used_is_told_in_a_line(zygote, flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("no folder")
    status, run = zygote.run(*flags)
    assert status != 0
    assert run.out() == ""
    [line] = run.err().splitlines()
    assert line.startswith(f"error: {tmp_path}/out/logs")


def test_killed_step_is_failed_and_repeated_finished_steps_are_not(zygote, flags, tmp_path):
    output = tmp_path / "out"
    run = zygote.start(*flags[:-1], "3000")
    run.wait_for("] Train")
    while not any((output / "artifacts" / "Train" / "model").glob("*/0003")):
        time.sleep(0.01)
    assert run.kill() == -signal.SIGKILL
    assert executions(output) == [("Source", "COMPLETE"), ("Train", "RUNNING")]
    why = "the run ended before this step did"
    assert ended(output) == [("interrupted", "Train", "interrupted", why)]

    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    assert "A former run was stopped during" in run.out()
    assert executions(output) == [
        ("Source", "COMPLETE"),
        ("Train", "FAILED"),
        ("Source", "CACHED"),
        ("Train", "COMPLETE"),
        ("Judge", "COMPLETE"),
        ("Publish", "COMPLETE"),
    ]
    assert_whole(output, steps=5)
    [latest, (status, node, state, noted)] = ended(output)
    assert latest == ("succeeded",)
    assert (status, node, state) == ("interrupted", "Train", "interrupted")
    assert noted.startswith(why)


@pytest.mark.parametrize(
    ("number", "said", "status"),
    [
        (signal.SIGINT, "Ctrl-C", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_signal_leaves_a_consistent_state_and_says_one_line(
    zygote, flags, tmp_path, number, said, status
):
    output = tmp_path / "out"
    run = zygote.start(*flags, "--learning-rate", str(small_pipeline.SLOW_LEARNING_RATE))
    run.wait_for("reading")
    assert run.kill(number) == status
    assert run.out().rstrip().splitlines()[-1] == (
        f"Interrupted by {said} during Source: what was done before is kept, and the same command "
        "goes on from there."
    )
    assert "A former run" not in run.out()
    assert "Traceback" not in run.out()
    assert run.err() == ""
    assert executions(output) == [("Source", "FAILED")]
    [(status, _, state, why)] = ended(output)
    assert (status, state) == ("interrupted", "interrupted")
    assert why.startswith(f"interrupted by {said}")
    assert not list((output / "artifacts" / "Source" / "dataset").iterdir())


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name
)
def test_a_training_that_is_told_to_stop_ends_in_its_own_words(zygote, flags, tmp_path, number):
    output = tmp_path / "out"
    run = zygote.start(*flags[:-1], "3000")
    run.wait_for("] Train")
    while not any((output / "artifacts" / "Train" / "model").glob("*/0003")):
        time.sleep(0.01)
    assert run.kill(number) == 128 + number
    assert run.out().rstrip().splitlines()[-1].startswith("Interrupted: saved step ")
    assert "Traceback" not in run.out()
    assert run.err() == ""
    assert executions(output) == [("Source", "COMPLETE"), ("Train", "FAILED")]
    [(status, _, state, why)] = ended(output)
    assert (status, state) == ("interrupted", "interrupted")
    assert why.startswith("saved step ")
    assert not list((output / "artifacts" / "Train" / "model").iterdir())
    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    assert "Source cached" in run.out()
    assert_whole(output, steps=5)


def test_second_run_at_the_same_time_is_refused(zygote, flags):
    first = zygote.start(*flags[:-1], "3000")
    first.wait_for("] Train")
    status, second = zygote.run(*flags)
    first.kill()
    assert status == 2
    assert second.out() == ""
    assert second.err().count("\n") == 1
    assert f"another run (process {first.pid}) is working in" in second.err()


def test_ten_kills_at_random_moments(zygote, flags, tmp_path):
    output = tmp_path / "out"
    moments = random.Random(0)
    for _ in range(10):
        run = zygote.start(*flags[:-1], "40")
        time.sleep(moments.uniform(0.0, 1.5))
        run.kill()
    status, run = zygote.run(*flags[:-1], "40")
    assert status == 0, run.err()
    states = executions(output)
    assert {state for _, state in states} <= {"COMPLETE", "CACHED", "FAILED"}
    for name in ("Source", "Train", "Judge", "Publish"):
        assert states.count((name, "COMPLETE")) == 1
    assert_whole(output, steps=40)


def test_deleted_release_is_pushed_again(zygote, flags, tmp_path):
    output = tmp_path / "out"
    assert zygote.run(*flags)[0] == 0
    shutil.rmtree(output / "serving_model")
    status, run = zygote.run(*flags)
    assert status == 0
    assert "Train cached" in run.out()
    assert "Publish done" in run.out()
    assert len(list((output / "serving_model" / "releases").iterdir())) == 1


def test_deleted_artifacts_are_made_again(zygote, flags, tmp_path):
    output = tmp_path / "out"
    assert zygote.run(*flags)[0] == 0
    shutil.rmtree(output / "artifacts" / "Train")
    status, run = zygote.run(*flags)
    assert status == 0
    assert "Source cached" in run.out()
    assert "Train done" in run.out()
    assert_whole(output, steps=5)


def test_what_a_clean_up_removed_is_made_again_and_nothing_else(zygote, flags, tmp_path):
    output, settings = tmp_path / "out", tmp_path / "mine.yaml"
    settings.write_text("output: {keep_runs: 1}")
    assert zygote.run(*flags)[0] == 0
    assert zygote.run(*flags[:-1], "6")[0] == 0
    releases = sorted((output / "serving_model" / "releases").iterdir())
    releases[0].unlink()
    more = (*flags[:-1], "7", "--config", str(settings))
    status, run = zygote.run(*more)
    assert status == 0, run.err()
    assert "Removed what nothing needs, 1 folder, " in run.out()
    models = output / "artifacts" / "Train" / "model"
    with lineage.locate(str(output)).open() as store:
        first, *others = store.artifacts(store.artifacts_of_type("Model"))
    assert first.removed
    assert [m.removed for m in others] == ["", ""]
    assert {str(path) for path in models.iterdir()} == {m.uri for m in others}

    status, run = zygote.run(*more)
    assert "Nothing to do: every step is up to date; no run was started" in run.out()
    assert "Removed" not in run.out()
    before = len(executions(output))
    status, run = zygote.run(*flags)
    assert status == 0, run.err()
    # It is judged anew, beside a later model, and its release is gone.
    assert executions(output)[before:] == [
        ("Source", "CACHED"),
        *((name, "COMPLETE") for name in ("Train", "Judge", "Publish")),
    ]


def test_baseline_is_the_blessed_model_before_the_candidate(zygote, flags, tmp_path):
    output = tmp_path / "out"
    for steps in ("5", "6", "5", "6"):
        status, run = zygote.run(*flags[:-1], steps)
        assert status == 0, run.err()
    # The third and fourth run went back to settings that were there before.
    assert "Nothing to do: every step is up to date.\n" in run.out()
    store = housekeeping.open_store(str(output), read_only=True)
    models = sorted(a.id for a in store.get_artifacts_by_type("Model"))
    baselines = [
        Path(a.uri, "baseline").read_text()
        for a in sorted(store.get_artifacts_by_type("ModelBlessing"), key=lambda a: a.id)
    ]
    assert baselines == ["None", str(models[0])]


WEEKS = """
dataset: {eval_fraction: 0.25}
model: {base_weights: random, start_from: latest_blessed}
output: {keep_runs: 1}
"""


def test_three_weeks_of_a_dataset_that_is_watched(zygote, tmp_path):
    """One that shrinks, breaks and grows; `tests/test_twenty_weeks.py` has more, with networks."""
    output, settings = tmp_path / "out", tmp_path / "settings.yaml"
    settings.write_text(WEEKS)
    (tmp_path / "set").mkdir()
    dataset = Dataset(tmp_path / "set" / "train.parquet")
    flags = ("--config", str(settings), "--dataset", str(tmp_path / "set"), "--output", str(output))
    said: list[str] = []

    def run() -> watch.Outcome:
        since = time.time()
        if zygote.run(*flags)[0]:
            return watch.Outcome(False, watch._failure(str(output), since))
        return watch.Outcome(True, watch._result(str(output), since))

    watcher = watch.Watcher(
        lambda: resolve_dataset(runner_local._parse(flags)[0])[1],
        run,
        interval=1.0,
        busy=lambda: watch.in_use(str(output)),
        say=said.append,
    )
    rows = []
    for what in ("begins", "shrinks", "breaks", "grows"):
        dataset.change(what)
        for _ in range(3):
            watcher.decide()
        waits, begins, ends, last = (line.partition("  ")[2] for line in said[-4:])
        assert "a run begins when the next look finds the same" in waits
        assert begins.endswith(": a run begins")
        if what == "breaks":
            assert re.search(r"the run failed after .*, once: .* cannot be used", ends)
            assert last.startswith("unchanged since a run failed once: next try at ")
        else:
            pushed = "not pushed" if what == "shrinks" else r"release \d+"
            assert re.fullmatch(f"the run is done after .*: {pushed}", ends), ends
            assert last.startswith("unchanged since the run that ended at ")
            rows.append(tuple(dataset.rows))

    # The second week's model is no better: nobody went on from it, and it is not kept.
    location = lineage.locate(str(output))
    with location.open() as store:
        first, second, third = store.artifacts(store.artifacts_of_type("Model"))
        assert [bool(model.removed) for model in (first, second, third)] == [False, True, False]
        kept = sorted(Path(first.uri).parent.iterdir())
        assert [path for path in kept if (path / "trained_on.json").exists()] == sorted(
            [Path(first.uri), Path(third.uri)]
        )
        maker = store.graph.maker(third.id)
        assert first.id in store.graph.inputs(maker)
        told = history.history(store, location.roots).releases
        assert [release.rows for release in told] == [len(rows[0]), len(rows[2])]
        added = history.added(store, told[0].version, told[1].version, location.roots)
        check_changes(dataclasses.asdict(added), rows[0], rows[2])
        for picture in (rows[0][0], rows[2][-1]):
            versions = [
                r.version for r, of in zip(told, (0, 2), strict=True) if picture in rows[of]
            ]
            known = history.known(store, picture.digest, location.roots)
            assert [*known.trained_on, *known.held_out] == versions
        assert "removed on " in text.trace_text(
            lineage.trace(store, str(second.id), location.roots)
        )
