"""The last screen, from a real ML Metadata database."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from components.pages import RELEASE_PLACE
from pipeline import housekeeping, summary
from pipeline.config import load_config


@pytest.fixture
def run(tmp_path):
    """A store with one execution; returns (store, execution's id, function that adds an output)."""
    store = housekeeping.open_store(str(tmp_path))
    type_id = store.put_execution_type(mlmd.ExecutionType(name="Some"))
    context_type = store.put_context_type(mlmd.ContextType(name="pipeline_run"))
    context = mlmd.Context(type_id=context_type, name="2026-01-01T00:00:00.5")
    execution_id, _, _ = store.put_execution(mlmd.Execution(type_id=type_id), [], [context])

    def add(type_name, **properties):
        uri = tmp_path / "artifacts" / type_name
        uri.mkdir(parents=True)
        artifact = mlmd.Artifact(
            type_id=store.put_artifact_type(mlmd.ArtifactType(name=type_name)), uri=str(uri)
        )
        for key, value in properties.items():
            kind = {int: "int_value", float: "double_value", str: "string_value"}[type(value)]
            setattr(artifact.custom_properties[key], kind, value)
        [artifact_id] = store.put_artifacts([artifact])
        store.put_events(
            [mlmd.Event(artifact_id=artifact_id, execution_id=execution_id, type=mlmd.Event.OUTPUT)]
        )
        return uri

    return store, execution_id, add


def test_rows_of_class_pictures_are_not_the_datasets(run):
    store, execution_id, add = run
    add("components.RejectedRows", rejected_total=5)
    node = mlmd.Context(
        type_id=store.put_context_type(mlmd.ContextType(name="node")),
        name="sd-finetuning.ClassPictures",
    )
    kind = store.get_execution_type("Some").id
    reading, _, _ = store.put_execution(mlmd.Execution(type_id=kind), [], [node])
    others = mlmd.Artifact(
        type_id=store.get_artifact_type("components.RejectedRows").id, uri="of_class"
    )
    others.custom_properties["rejected_total"].int_value = 2
    [artifact_id] = store.put_artifacts([others])
    store.put_events(
        [mlmd.Event(artifact_id=artifact_id, execution_id=reading, type=mlmd.Event.OUTPUT)]
    )
    result = summary.read_result(store, [execution_id, reading])
    assert result.rejected == 5
    assert result.rejects.endswith("components.RejectedRows")
    assert "of_class" in result.folders


def test_pushed_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, execution_id, add = run
    add("Examples", baseline="base weights")
    add("ModelEvaluation", loss=0.2, loss_baseline=0.25)
    add("ModelBlessing", blessed=1, reasons="")
    add("PushedModel", pushed=1, pushed_version="17")
    add("ModelRun")
    add("components.RejectedRows", rejected_total=5)
    report = add("components.EvaluationReport")
    for name in ("before_after.png", "evaluation.html", "loss_curve.png", "summary.json"):
        (report / name).write_text(name)
    (report / "evaluation.html").write_text(f"<p>ü {RELEASE_PLACE}</p>")
    (add("components.DatasetReport") / "dataset.html").write_text("<p>")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.png").touch()

    result = summary.read_result(store, [execution_id])
    assert (result.loss, result.loss_baseline, result.blessed) == (0.2, 0.25, True)
    assert summary.copy_reports(result, str(tmp_path)) == tmp_path / "report"
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "before_after.png",
        "dataset.html",
        "evaluation.html",
        "loss_curve.png",
        "summary.json",
    ]
    # The page was written before there was a release.
    assert (tmp_path / "report" / "evaluation.html").read_text() == "<p>ü 17</p>"

    config = load_config(flags={"output": ("--output", str(tmp_path))})
    text = summary.last_screen(config, result, "serving_model", tmp_path / "logs" / "run.log")
    assert "0.2500 base weights -> 0.2000 fine-tuned (-20.0 %)" in text
    assert "version 17 in serving_model" in text
    assert "report/before_after.png" in text
    assert "report/dataset.html" in text
    assert "report/evaluation.html" in text
    assert "5, listed in artifacts/components.RejectedRows" in text
    assert "-m serving.generate 'a drawing of" in text
    assert "--logdir artifacts" in text
    assert "logs/run.log" in text
    store = shlex.quote(str(tmp_path))
    assert f"-m pipeline.lineage trace release:17 --store {store})" in text
    assert (
        f"-m pipeline.lineage --store {store} serve), then http://localhost:8081/release/17" in text
    )


def test_what_a_run_takes_on_disk_and_all_that_lies_there(run, tmp_path):
    def write(path, megabytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(megabytes * 1_000_000)

    store, execution_id, add = run
    write(add("Model", training_id="0123") / "weights", 3)
    add("PushedModel", pushed_version="17")
    serving = tmp_path / "serving_model"
    write(serving / "decoder" / "17" / "weights", 4)
    write(serving / "decoder" / "16" / "weights", 100)
    write(tmp_path / "checkpoints" / "0123" / "ckpt-1", 20)
    write(tmp_path / "checkpoints" / "4567" / "ckpt-1", 1000)
    result = summary.read_result(store, [execution_id])
    config = load_config(flags={"output": ("--output", str(tmp_path))})
    text = summary.last_screen(config, result, str(serving), tmp_path / "run.log")
    assert re.search(r"  on disk +27 MB of this run, 1\.1 GB of all runs here\n", text)


def test_model_that_was_not_blessed_says_why(run, tmp_path):
    store, execution_id, add = run
    add("Examples", baseline="base weights")
    add("ModelEvaluation", loss=0.3, loss_baseline=0.25)
    add("ModelBlessing", blessed=0, reasons="the held-out loss rises\nso does its interval")
    add("PushedModel", pushed=0)
    model = add("Model")
    drawn = add("ModelRun") / "validation"
    drawn.mkdir()
    (drawn / "prompts.json").write_text(json.dumps({"prompts": ["a red dragon", "a green one"]}))
    result = summary.read_result(store, [execution_id])
    text = summary.last_screen(load_config(), result, "serving_model", tmp_path / "run.log")
    assert "(+20.0 %)" in text
    assert "no: the held-out loss rises, and 1 more reasons on the evaluation's page" in text
    command = f"-m serving.generate 'a red dragon' --model {model} --out picture.png"
    assert command in text
    assert "-m pipeline.lineage run 2026-01-01T00:00:00.5" in text
    assert (
        "-m pipeline.lineage serve, then http://localhost:8081/run/2026-01-01T00%3A00%3A00.5"
        in text
    )


def test_model_that_the_canary_refused_says_why(run, tmp_path):
    store, execution_id, add = run
    add("ModelBlessing", blessed=1, reasons="")
    add("PushedModel", pushed=0, reason="the canary refuses the model: it draws one colour")
    report = add("components.EvaluationReport")
    (report / "evaluation.html").write_text(RELEASE_PLACE)
    result = summary.read_result(store, [execution_id])
    why = "the canary refuses the model: it draws one colour"
    assert summary.pushed_text(result, "serving_model") == f"no: {why}"
    page = summary.copy_reports(result, str(tmp_path)) / "evaluation.html"
    assert page.read_text() == f"none: {why}"


@pytest.mark.parametrize(
    ("blessed", "expected"),
    [
        (1, "version 3 in serving_model, unsure: it cannot be told"),
        (0, "no, unsure: it cannot be told (evaluation.when_unsure)"),
    ],
)
def test_unsure_models_are_marked(run, tmp_path, blessed, expected):
    store, execution_id, add = run
    add("ModelBlessing", blessed=blessed, verdict="unsure", reasons="it cannot be told")
    add("PushedModel", **({"pushed_version": "3"} if blessed else {"pushed": 0}))
    result = summary.read_result(store, [execution_id])
    text = summary.last_screen(load_config(), result, "serving_model", tmp_path / "run.log")
    assert expected in text
