"""The questions: what made it, what did it touch, what differs, why did it run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_store import (
    COMPLETE,
    FAILED,
    FIRST_DAY,
    MINUTE,
    Settings,
    StoreMaker,
    run_facts,
)

from pipeline import lineage
from pipeline.lineage import comparing, drawing, tracing
from pipeline.lineage.text import runs_text, trace_text
from storage.row_index import IndexedRow


@pytest.fixture
def store(small):
    with lineage.locate(str(small[0])).open() as opened:
        yield opened


@pytest.fixture
def made(small):
    return small[1]


def test_trace_of_a_release(store, made):
    trace = lineage.trace(store, "release:2")
    assert trace.release == "2"
    assert trace.subject.id == made["second"]["pushed_model"][0].id
    assert trace.run.name == "second"
    facts = {(f.section, f.step, f.name): f.value for f in trace.facts}
    for (section, step, name), value in {
        ("release", "ServingPusher", "pushed_version"): "2",
        ("data", "CaptionExampleGen", "dataset"): "data/creatures",
        ("data", "CaptionExampleGen", "dataset_fingerprint"): "f" * 16,
        ("rejected rows", "CaptionExampleGen", "rejected_empty_caption"): 3,
        ("statistics", "CaptionValidator", "num_anomalies"): 0,
        ("base weights", "Trainer", "base_weights_hash"): "b" * 16,
        ("base weights", "LatentGen", "encoders_hash"): "b" * 16,
        ("hyperparameters", "Trainer", "learning_rate"): 1e-4,
        ("code", "Trainer", "code_version"): "c" * 16,
        ("evaluation", "LossScorer", "loss"): 0.16,
        ("blessing", "Evaluator", "blessed"): 1,
    }.items():
        assert facts[section, step, name] == value
    assert [s for s in tracing.SECTIONS if any(f.section == s for f in trace.facts)] == [
        *dict.fromkeys(f.section for f in trace.facts)
    ]
    # Statistics and the rejected rows come from the first run, through the cache.
    roles = {(step.execution.node, step.execution.run_id): step.role for step in trace.steps}
    first, second = store.find_run_id("first"), store.find_run_id("second")
    assert roles == {
        ("CaptionExampleGen", first): "made it",
        ("StatisticsGen", first): "describes it",
        ("SchemaGen", first): "describes it",
        ("CaptionValidator", first): "describes it",
        ("LatentGen", first): "made it",
        ("Trainer", first): "baseline",
        ("Trainer", second): "made it",
        ("LossScorer", second): "made it",
        ("Evaluator", second): "made it",
        ("ServingPusher", second): "made it",
    }
    assert all(step.execution.state is lineage.State.COMPLETE for step in trace.steps)
    baseline = made["first"]["model"][0].id
    assert facts["evaluation", "", "baseline_model"].startswith(f"artifact {baseline} ")
    # The hyperparameters of the baseline are not those of the release.
    assert 3e-4 not in [f.value for f in trace.facts if f.name == "learning_rate"]


def test_a_trace_names_the_models_of_the_shorter_training(tmp_path):
    maker = StoreMaker()
    shorter = maker.run("short", Settings(model={"training_id": "abc"}))["model"][0].id
    went_on = {"training_id": "def", "went_on_from": "abc", "went_on_at_step": 160}
    maker.run("long", Settings(steps=320, model=went_on), FIRST_DAY + MINUTE, loss=0.1)
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        facts = [(f.section, f.name, f.value) for f in lineage.trace(store, "2").facts]
        [model] = [value for _, name, value in facts if name == "went_on_from_model"]
        assert model.startswith(f"artifact {shorter} (")
        assert ("hyperparameters", "went_on_from", "abc") in facts
        assert ("hyperparameters", "went_on_at_step", 160) in facts
        names = [f.name for f in lineage.trace(store, "1").facts]
        assert not any(name.startswith("went_on") for name in names)


def test_trace_of_data_does_not_go_downstream(store, made):
    trace = lineage.trace(store, f"artifact:{made['first']['examples'][0].id}")
    assert {step.execution.node for step in trace.steps} == {
        "CaptionExampleGen",
        "StatisticsGen",
        "SchemaGen",
        "CaptionValidator",
    }


def test_what_an_artifact_can_be_called(store, made):
    model = made["first"]["model"][0].id
    uri = store.artifact(model).uri
    for text in (f"artifact:{model}", str(model), uri):
        assert tracing.find_artifact(store, text).id == model
    # A bare number is a release first.
    pushed = made["second"]["pushed_model"][0].id
    assert [tracing.find_artifact(store, text).id for text in ("2", "release:2", "latest")] == (
        [pushed] * 3
    )
    for text, message in {
        "release:9": r"there is no release '9' in .*; there are: 1, 2",
        "artifact:x": "is not an artifact",
        "artifact:99999": "there is no artifact 99999",
        "9" * 30: "there is no release, artifact, path or name",
        "nowhere": "there is no release, artifact, path or name 'nowhere'",
        "": "there is no release",
    }.items():
        with pytest.raises(lineage.LineageError, match=message):
            tracing.find_artifact(store, text)


def test_a_release_file_names_its_release(tmp_path, monkeypatch):
    maker = StoreMaker()
    for place in ("a", "b"):
        destination = str(tmp_path / place)
        pushed = maker.artifact("PushedModel", pushed_version="1", pushed_destination=destination)
        maker.execution("run", "ServingPusher", outputs={"pushed_model": [pushed]})
    maker.save(tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    with lineage.locate("db").open() as store:
        assert tracing.find_artifact(store, "b/releases/1.json").id == 2
        assert tracing.find_artifact(store, str(tmp_path / "a/releases/1.json")).id == 1
        with pytest.raises(lineage.LineageError, match="there is no release"):
            tracing.find_artifact(store, "c/releases/1.json")


def test_a_push_that_was_repeated_is_one_release(tmp_path):
    maker = StoreMaker()
    for run in ("one", "two"):
        pushed = maker.artifact("PushedModel", pushed_version="1", pushed_destination="a")
        maker.execution(run, "ServingPusher", outputs={"pushed_model": [pushed]})
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        assert lineage.trace(store, "release:1").run.name == "one"
        assert [run.releases for run in store.runs()] == [("1",), ("1",)]


def test_two_releases_of_one_version(tmp_path):
    maker = StoreMaker()
    for place in ("a", "b"):
        pushed = maker.artifact("PushedModel", pushed_version="1", pushed_destination=place)
        maker.execution("run", "ServingPusher", outputs={"pushed_model": [pushed]})
    maker.save(tmp_path / "db")
    with (
        lineage.locate(str(tmp_path / "db")).open() as store,
        pytest.raises(
            lineage.LineageError,
            match="2 releases with version 1: choose one of artifact:1 in a, artifact:2 in b",
        ),
    ):
        lineage.trace(store, "1")


@pytest.mark.parametrize("text", ["data/bad", "bad" * 5 + "0", "badbadba", "artifact"])
def test_impact_of_a_dataset(store, made, text):
    if text == "artifact":
        text = f"artifact:{made['other data']['examples'][0].id}"
    impact = lineage.impact(store, text)
    assert [run.name for run in impact.runs] == ["other data"]
    assert [(m.artifact.id, m.made_of) for m in impact.models] == [
        (made["other data"]["model"][0].id, True)
    ]
    assert impact.releases == ()
    assert impact.artifacts["Examples"] == 3


def test_impact_through_the_cache_and_through_comparison(store, made):
    model = made["first"]["model"][0].id
    impact = lineage.impact(store, f"artifact:{model}")
    # `again` took the model from the cache; `second` was compared with it.
    assert [run.name for run in impact.runs] == ["first", "second", "again"]
    assert [(t.version, t.made_of, t.run.name) for t in impact.releases] == [
        ("1", True, "first"),
        ("2", False, "second"),
    ]


def test_impact_of_weights_reaches_every_run(store):
    impact = lineage.impact(store, "b" * 16)
    assert len(impact.runs) == 6
    assert [t.version for t in impact.releases] == ["1", "2"]
    assert any(line.startswith("custom_config.base_weights_hash") for line in impact.matched)


def test_manifests_know_the_weights_file_by_file(tmp_path):
    maker = StoreMaker(folder=str(tmp_path))
    made = maker.run("one")
    maker.run("two", Settings(steps=7), FIRST_DAY + MINUTE, loss=0.1)
    maker.save(tmp_path / "db")
    uri = Path(maker.artifacts[made["model"][0].place][1].uri, "Format-Serving")
    uri.mkdir(parents=True)
    weights = {"decoder": "0123456789abcdef", "text_encoder": "fedcba9876543210"}
    (uri / "manifest.json").write_text(
        json.dumps({"base_weights": weights, "git_commit": "abc", "seed": 3})
    )
    with lineage.locate(str(tmp_path / "db")).open() as store:
        trace = lineage.trace(store, "1", [str(tmp_path)])
        facts = {(f.section, f.name): f.value for f in trace.facts}
        assert facts["base weights", "manifest.base_weights.decoder"] == "0123456789abcdef"
        assert facts["code", "manifest.git_commit"] == "abc"
        assert ("hyperparameters", "manifest.seed") not in facts
        impact = lineage.impact(store, "fedcba98", [str(tmp_path)])
        assert [run.name for run in impact.runs] == ["one"]
        assert [t.version for t in impact.releases] == ["1"]
        # Not from folders that are nobody's business.
        assert not any("manifest" in f.name for f in lineage.trace(store, "1", ["/none"]).facts)
        with pytest.raises(lineage.LineageError, match="is called"):
            lineage.impact(store, "fedcba98")


@pytest.mark.parametrize("text", ["nothing", "", "bad", "%", "data/ba_", "99999"])
def test_impact_of_nothing(store, text):
    with pytest.raises(lineage.LineageError, match="is called"):
        lineage.impact(store, text)


def test_impact_of_a_path_from_elsewhere(tmp_path, monkeypatch):
    maker = StoreMaker()
    maker.run("one", Settings(dataset="/home/me/project/data/creatures"))
    maker.run("two", Settings(dataset="/home/me/project/more-data/creatures"))
    maker.run("three", Settings(dataset=str(tmp_path / "here")))
    maker.save(tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    with lineage.locate("db").open() as store:
        for text in ("data/creatures", "project/data/creatures"):
            assert [run.name for run in lineage.impact(store, text).runs] == ["one"]
        assert [run.name for run in lineage.impact(store, "here").runs] == ["three"]


def test_circles_end(tmp_path):
    maker = StoreMaker()
    one, two = maker.artifact("Model"), maker.artifact("Model")
    maker.execution("run", "A", inputs={"x": [one]}, outputs={"y": [two]})
    maker.execution("run", "B", inputs={"x": [two]}, outputs={"y": [one]})
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        assert len(lineage.trace(store, "artifact:1").steps) == 2
        assert len(lineage.impact(store, "artifact:1").models) == 2


def test_diff(store):
    diff = lineage.diff(store, "first", "other data")
    found = {(d.section, d.step, d.name): (d.first, d.second) for d in diff.differences}
    assert found.pop(("data", "CaptionExampleGen", "dataset")) == ("data/creatures", "data/bad")
    assert found.pop(("data", "CaptionExampleGen", "dataset_fingerprint"))[0] == "f" * 16
    assert found.pop(("metrics", "LossScorer", "scores.loss")) == (0.17, 0.19)
    assert found.pop(("metrics", "Evaluator", "blessing.blessed")) == (1, 0)
    assert found.pop(("metrics", "ServingPusher", "pushed_model.pushed_version")) == ("1", None)
    assert {section for section, _, _ in found} <= {"metrics", "data"}
    assert diff.equal > 20
    changed = lineage.diff(store, "first", "second").differences
    assert [(d.step, d.name, d.first, d.second) for d in changed if d.section == "settings"] == [
        ("Trainer", "custom_config.training.learning_rate", 3e-4, 1e-4)
    ]
    assert lineage.diff(store, "first", "first").differences == ()


def test_diff_of_code(tmp_path):
    maker = StoreMaker()
    maker.run("one")
    maker.run("two", Settings(code="d" * 16), FIRST_DAY + MINUTE)
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        diff = lineage.diff(store, "one", "two")
        why = lineage.why(store, "LatentGen")
    code = [d for d in diff.differences if d.section == "code"]
    assert {(d.first, d.second) for d in code} == {("c" * 16, "d" * 16)}
    assert ("Trainer", "custom_config.code_version") in {(d.step, d.name) for d in code}
    assert "code_version of CaptionExampleGen; code_version of LatentGen" in why.explanation


def test_why_it_was_taken_from_the_cache(store):
    why = lineage.why(store, "Trainer", "again")
    assert why.verdict == "hit"
    assert why.earlier_run.name == "first"
    assert why.causes == ()


def test_why_it_was_executed(store):
    why = lineage.why(store, "Trainer", "second")
    assert why.verdict == "miss"
    assert why.explanation == "executed because this had changed: learning_rate of Trainer"
    assert [(c.name, c.before, c.now) for c in why.causes] == [
        ("custom_config.training.learning_rate", 3e-4, 1e-4)
    ]


def test_what_a_step_only_writes_down_is_no_reason(tmp_path):
    maker = StoreMaker()
    for run, keep in (("one", 5), ("two", 3)):
        settings = {"training_dataset": f"/{run}/pictures", "keep_versions": keep}
        maker.execution(run, "ServingPusher", settings=settings)
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        why = lineage.why(store, "ServingPusher", "two")
    assert [(cause.name, cause.before, cause.now) for cause in why.causes] == [
        ("keep_versions", 5, 3)
    ]


def test_why_goes_up_to_what_changed(store, made):
    why = lineage.why(store, "Evaluator", "other data")
    assert why.explanation.startswith("executed because this had changed: dataset, ")
    deepest = max(why.causes, key=lambda c: c.depth)
    assert (deepest.step, deepest.kind) == ("CaptionExampleGen", "setting")
    inputs = [(c.step, c.name, c.now) for c in why.causes if c.kind == "input"]
    assert ("LatentGen", "examples", f"artifact {made['other data']['examples'][0].id}") in inputs


def test_why_of_the_first_of_a_resolver_and_by_id(store):
    first = lineage.why(store, "Trainer", "first")
    assert first.explanation == ("executed because it had never been completed before")
    assert lineage.why(store, str(first.execution.id)).execution == first.execution
    assert lineage.why(store, "LatestBlessedModel").verdict == "not cached"
    with pytest.raises(
        lineage.LineageError, match=r"no step 'Tuner' in run first; there are: Capt"
    ):
        lineage.why(store, "Tuner", "first")
    with pytest.raises(lineage.LineageError, match="there is no step 99999"):
        lineage.why(store, "99999")


def _twice(path, state=COMPLETE, second_key="key", artifact_state=None):
    maker = StoreMaker()
    for run, current, key in (("one", state, "key"), ("two", COMPLETE, second_key)):
        model = maker.artifact("Model")
        if run == "one" and artifact_state is not None:
            maker.artifacts[0][1].state = artifact_state
        maker.execution(run, "Trainer", current, {"a": 1}, {}, {"model": [model]}, cache_key=key)
    maker.save(path)
    with lineage.locate(str(path)).open() as store:
        return lineage.why(store, "Trainer", "two").explanation


def test_why_although_nothing_changed(tmp_path):
    deleted = 4
    assert "artifact 1 is deleted" in _twice(tmp_path / "1", artifact_state=deleted)
    assert "the cache was switched off" in _twice(tmp_path / "2")
    assert "the Beam flags" in _twice(tmp_path / "3", second_key="other")
    assert "had failed once, and only complete steps are cached" in _twice(tmp_path / "4", FAILED)


def test_an_input_of_the_same_content_is_no_reason(tmp_path):
    maker = StoreMaker()
    for run, data, steps in (("one", "a", 1), ("two", "b", 2)):
        latents = maker.artifact("Examples", content_digest="same", tfx_version=run)
        examples = maker.artifact("Examples", content_digest=data)
        inputs = {"latents": [latents], "examples": [examples]}
        maker.execution(run, "Trainer", COMPLETE, {"steps": steps}, inputs, cache_key=run)
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        causes = lineage.why(store, "Trainer", "two").causes
    assert [(c.kind, c.name) for c in causes] == [("setting", "steps"), ("input", "examples")]


def test_why_compares_with_its_own_pipeline(tmp_path):
    maker = StoreMaker(pipeline="one")
    maker.execution("first", "Trainer", COMPLETE, {"a": 1})
    maker.save(tmp_path / "db")
    other = StoreMaker(pipeline="two")
    other.execution("second", "Trainer", COMPLETE, {"a": 2})
    other.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        assert {run.pipeline for run in store.runs()} == {"one", "two"}
        assert "never been completed" in lineage.why(store, "Trainer", "second").explanation


def test_compare(store):
    comparison = lineage.compare(store, metrics=["loss"], settings=["learning_rate"])
    assert [
        (row.run.name, row.run.metrics["loss"], row.settings["learning_rate"])
        for row in comparison.rows
    ] == [
        ("first", 0.17, 3e-4),
        ("second", 0.16, 1e-4),
        ("again", 0.17, 3e-4),
        ("other data", 0.19, 3e-4),
    ]
    assert comparison.metrics == ("loss",)
    chosen = lineage.compare(store, ["second", "running"])
    assert [row.run.name for row in chosen.rows] == ["second", "running"]
    with pytest.raises(lineage.LineageError, match="no run has a metric 'los'; there are: loss,"):
        lineage.compare(store, metrics=["los"])
    with pytest.raises(lineage.LineageError, match=r"setting 'rate'.*Trainer\.custom_config\.trai"):
        lineage.compare(store, settings=["rate"])


def test_ends_of_intervals_are_no_headline(tmp_path):
    maker = StoreMaker()
    numbers = {"loss": 0.2, "loss_lower": 0.1, "loss_upper": 0.3, "only_upper": 0.4}
    for kind in ("ModelEvaluation", "ModelBlessing"):
        artifact = maker.artifact(kind, **numbers, blessed=1)
        maker.execution("run", kind, outputs={"x": [artifact]})
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        assert lineage.compare(store).metrics == ("loss", "only_upper")
        assert lineage.compare(store, metrics=["loss_upper"]).rows[0].run.metrics == numbers
        blessing = lineage.trace(store, "artifact:2")
    assert [(f.section, f.name) for f in blessing.facts if f.name == "loss"] == [
        ("evaluation", "loss")
    ]


@pytest.mark.parametrize(("blessed", "shown"), [(1, "yes, unsure"), (0, "no, unsure")])
def test_a_run_that_is_unsure_is_marked(tmp_path, blessed, shown):
    maker = StoreMaker()
    blessing = maker.artifact("ModelBlessing", blessed=blessed, verdict="unsure")
    maker.execution("run", "Evaluator", outputs={"blessing": [blessing]})
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        [run] = store.runs()
    assert (run.blessed, run.unsure, run.shown_blessing) == (bool(blessed), True, shown)
    assert shown in runs_text([run])


def test_many_runs(many):
    """Numbers that follow from how the store was made."""
    with lineage.locate(str(many)).open() as store:
        expected = run_facts(120)
        runs = store.runs()
        assert {run.name: (run.status.value, run.releases) for run in runs} == expected
        impact = lineage.impact(store, "data/batch-1")
        assert sum(1 for run in impact.runs if 50 <= int(run.name[-3:]) < 100) == 50
        assert {t.version for t in impact.releases if t.made_of} == {
            version
            for name, (_, versions) in expected.items()
            for version in versions
            if 50 <= int(name[-3:]) < 100
        }
        compared = [t.run.name for t in impact.releases if not t.made_of]
        assert compared == ["run 0100"]
        assert all(t.made_of for t in impact.models)
        assert comparing.why(store, "StatisticsGen", "run 0060").earlier_run.name == "run 0050"


@pytest.mark.slow
def test_a_thousand_runs(thousand):
    with lineage.locate(str(thousand)).open() as store:
        counts = store.counts()
        assert counts["executions"] > 9000
        assert counts["artifacts"] > 25000
        assert {r.name: (r.status.value, r.releases) for r in store.runs()} == run_facts(1000)
        assert len(lineage.impact(store, "b" * 16).runs) == 1000
        assert len(lineage.trace(store, "latest").steps) == 10


def _ingested(maker, folder, run, rows, rejects=()):
    """An execution of CaptionExampleGen with the files that it leaves of (picture, caption)."""
    examples, rejected = folder / run / "examples", folder / run / "rejects"
    (examples / "rows").mkdir(parents=True)
    rejected.mkdir()
    lines = [IndexedRow(f"{p} {c}", p, c).line() for p, c in rows]
    # As shards have them.
    (examples / "rows" / "eval-00000.jsonl").write_bytes(b"".join(lines[:1]))
    (examples / "rows" / "train-00000.jsonl").write_bytes(b"".join(lines[1:]))
    (rejected / "rejects.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rejects))
    outputs = {
        "examples": [maker.artifact("Examples", str(examples))],
        "rejects": [maker.artifact("components.RejectedRows", str(rejected))],
    }
    settings = {"dataset_fingerprint": run}
    maker.execution(run, "CaptionExampleGen", COMPLETE, settings, {}, outputs, cache_key=run)
    maker.execution(run, "LatentGen", COMPLETE, {}, {"examples": outputs["examples"]})


def test_why_says_which_rows_changed(tmp_path):
    maker = StoreMaker()
    kept = [(f"p{i}", f"caption {i}") for i in range(4)]
    before = [*kept, ("p5", "a cat"), ("p6", "a dog"), ("p7", "gone \u2028 \U0001f409")]
    now = [
        *kept,
        ("p5", "a tomcat"),
        ("other", "a dog"),
        *((f"n{i}", f"new {i}") for i in range(7)),
    ]
    told = {"caption": "x", "detail": "y"}
    broken = {"origin": "p7.png", "row": 7, "reason": "image_damaged", **told}
    _ingested(maker, tmp_path, "one", before)
    _ingested(maker, tmp_path, "two", now, [broken])
    _ingested(maker, tmp_path, "three", now, [{**broken, "row": 8}])
    maker.save(tmp_path / "metadata.sqlite")
    location = lineage.locate(str(tmp_path))
    with location.open() as store:
        why = lineage.why(store, "LatentGen", "two", location.roots)
        same = lineage.why(store, "CaptionExampleGen", "three", location.roots)
        unknown = lineage.why(store, "CaptionExampleGen", "two")
        diff = lineage.diff(store, "one", "two", location.roots)
    summary = "7 rows added, 1 removed, 1 with another caption, 1 with another picture, 1 set aside"
    assert why.explanation == (
        f"executed because this had changed: dataset_fingerprint of CaptionExampleGen ({summary})"
    )
    assert [(c.name, c.before, c.now) for c in why.causes if c.kind in ("rows", "row")] == [
        ("rows", "7 rows", summary),
        *(("added", None, f"new {i}") for i in range(5)),
        ("added", None, "and 2 more"),
        ("removed", "gone \u2028 \U0001f409", None),
        ("caption", "a cat", "a tomcat"),
        ("picture", "a dog", "another picture"),
        ("set aside", None, "p7.png row 7: image_damaged"),
    ]
    assert same.explanation.endswith(
        "(no row changed: files were renamed, or something that is not read differs)"
    )
    [rows] = [d for d in diff.differences if d.name == "rows"]
    assert (rows.section, rows.first, rows.second) == ("data", "7 rows", summary)
    [rows] = [c for c in unknown.causes if c.kind == "rows"]
    assert rows.now.startswith("not known: its files are outside the pipeline's folders")


def test_a_resolver_makes_no_arrow_to_the_model_of_its_run(store, made):
    for run, baseline in (("first", None), ("second", made["first"]["model"][0].id)):
        steps = store.steps(store.find_run_id(run))
        [resolver] = [step.id for step in steps if step.node == "LatestBlessedModel"]
        candidate = made[run]["model"][0].id
        links = store.links(executions=[step.id for step in steps])
        of_resolver = {
            (k.key, k.artifact_id, k.output) for k in links if k.execution_id == resolver
        }
        found = {("model", baseline, True)} if baseline else set()
        assert of_resolver == {("candidate", candidate, False), *found}
        artifacts = {a.id: a for a in store.artifacts(k.artifact_id for k in links)}
        edges = drawing.draw(steps, links, artifacts).edges
        to, of = f"step-{resolver}", [end for start, end, _ in edges if start == f"step-{resolver}"]
        assert (f"artifact-{candidate}", to, "candidate") in edges
        assert of == ([f"artifact-{baseline}"] if baseline else [])


def test_a_model_that_was_started_from_is_told_apart_from_what_made_the_release(tmp_path):
    maker = StoreMaker()
    runs = []
    for number, name in enumerate(("one", "two", "three")):
        before = runs[-1]["model"] if runs else []
        settings = Settings(fingerprint=f"{number + 10:x}" * 16, steps=100 + number)
        at = FIRST_DAY + number * 7 * MINUTE
        runs.append(maker.run(name, settings, at, baseline=before, started=before))
    maker.save(tmp_path / "metadata.sqlite")
    models = [run["model"][0].id for run in runs]
    with lineage.locate(str(tmp_path)).open() as store:
        trace = lineage.trace(store, "release:2")
        impact = lineage.impact(store, "a" * 16)
    roles = {}
    for step in trace.steps:
        roles.setdefault(step.execution.node, []).append(step.role)
    assert roles["CaptionExampleGen"] == roles["Trainer"] == ["started from", "made it"]
    assert roles["LossScorer"] == ["made it"]
    facts = [(f.section, f.name, f.value) for f in trace.facts]
    # Its own hyperparameters and data, and no others.
    for name, value in (("steps", 101), ("dataset_fingerprint", "b" * 16)):
        assert [v for _, n, v in facts if n == name] == [value]
    assert ("data", "earlier_dataset_fingerprint", "a" * 16) in facts
    [before] = [v for s, n, v in facts if (s, n) == ("base weights", "started_from_model")]
    assert before.startswith(f"release 1, artifact {models[0]} (")
    assert "Steps with the role `started from` made the models that training" in trace_text(trace)
    # What was started from a model was made of its data, too.
    assert [touched.artifact.id for touched in impact.models if touched.made_of] == models
    assert [touched.version for touched in impact.releases if touched.made_of] == ["1", "2", "3"]
