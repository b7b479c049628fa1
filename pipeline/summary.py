"""The last screen of a run: what came out, where it is, what to do next."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.config import RunConfig
from pipeline.lineage.locations import DEFAULT_PORT, DEFAULT_STORE

REPORT_NAME = "report"
_REPORT_TYPE = "components.EvaluationReport"
_DATASET_REPORT_TYPE = "components.DatasetReport"
_REJECTS_TYPE = "components.RejectedRows"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run produced, or took from the cache; `None` for what it has none of.

    Attributes:
        loss: Held-out loss of the fine-tuned model.
        loss_baseline: Held-out loss of what it was compared with.
        baseline: What that was.
        blessed: Whether the evaluation found the model good enough to push.
        unsure: Whether it could not be told.
        reasons: Why it did not, or could not.
        model: Folder of the model.
        version: Version in the serving directory.
        model_run: Folder with the TensorBoard logs.
        report: Folder with the report's files.
        dataset_report: Folder with the page about the dataset.
        rejected: Rows of the dataset that were set aside.
        rejects: Folder with the list of them.
        run: Name of the run in ML Metadata.
    """

    loss: float | None
    loss_baseline: float | None
    baseline: str | None
    blessed: bool | None
    unsure: bool
    reasons: tuple[str, ...]
    model: str | None
    version: str | None
    model_run: str | None
    report: str | None
    dataset_report: str | None
    rejected: int
    rejects: str | None
    run: str | None


def read_result(store: metadata_store.MetadataStore, execution_ids: Iterable[int]) -> RunResult:
    """Reads a run's results from the outputs of its executions."""
    execution_ids = list(execution_ids)
    events = store.get_events_by_execution_ids(execution_ids)
    contexts = store.get_contexts_by_execution(execution_ids[0]) if execution_ids else []
    outputs = {e.artifact_id for e in events if e.type == mlmd.Event.OUTPUT}
    by_type: dict[str, mlmd.Artifact] = {}
    baseline: str | None = None
    for artifact in store.get_artifacts_by_id(sorted(outputs)):
        by_type[artifact.type] = artifact
        if artifact.type == "Examples" and "baseline" in artifact.custom_properties:
            baseline = artifact.custom_properties["baseline"].string_value

    def properties(type_name: str) -> dict[str, mlmd.Value]:
        return dict(by_type[type_name].custom_properties) if type_name in by_type else {}

    def uri(type_name: str) -> str | None:
        return by_type[type_name].uri if type_name in by_type else None

    evaluation = properties("ModelEvaluation")
    blessing = properties("ModelBlessing")
    pushed = properties("PushedModel")
    rejects = properties(_REJECTS_TYPE)

    def number(name: str) -> float | None:
        return evaluation[name].double_value if name in evaluation else None

    return RunResult(
        loss=number("loss"),
        loss_baseline=number("loss_baseline"),
        baseline=baseline,
        blessed=bool(blessing["blessed"].int_value) if "blessed" in blessing else None,
        unsure="verdict" in blessing and blessing["verdict"].string_value == "unsure",
        reasons=tuple(blessing["reasons"].string_value.splitlines())
        if "reasons" in blessing
        else (),
        model=uri("Model"),
        version=pushed["pushed_version"].string_value or None
        if "pushed_version" in pushed
        else None,
        model_run=uri("ModelRun"),
        report=uri(_REPORT_TYPE),
        dataset_report=uri(_DATASET_REPORT_TYPE),
        rejected=rejects["rejected_total"].int_value if "rejected_total" in rejects else 0,
        rejects=uri(_REJECTS_TYPE),
        run=next((c.name for c in contexts if c.type == "pipeline_run"), None),
    )


def copy_reports(result: RunResult, output: str) -> Path:
    """Copies the files of a run's reports to `<output>/report`, replacing what is there.

    Returns:
        The folder.
    """
    target = Path(output) / REPORT_NAME
    partial = target.with_name(f".{REPORT_NAME}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for source in (result.report, result.dataset_report):
        if source is not None:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def last_screen(config: RunConfig, result: RunResult, serving_dir: str, log_path: Path) -> str:
    """The text of the last screen."""
    rows: list[tuple[str, str]] = []
    if result.loss is not None and result.loss_baseline is not None:
        change = 100 * (result.loss / result.loss_baseline - 1) if result.loss_baseline else 0.0
        rows.append(
            (
                "held-out loss",
                f"{result.loss_baseline:.4f} {result.baseline or 'baseline'} -> "
                f"{result.loss:.4f} fine-tuned ({change:+.1f} %)",
            )
        )
    rows.append(("pushed", _pushed(result, serving_dir)))
    if result.rejected and result.rejects:
        rows.append(
            ("rows set aside", f"{result.rejected}, listed in {shown_path(result.rejects)}")
        )
    report = Path(config.output) / REPORT_NAME
    for label, name in (
        ("dataset", "dataset.html"),
        ("evaluation", "evaluation.html"),
        ("pictures", "before_after.png"),
        ("loss curve", "loss_curve.png"),
    ):
        if (report / name).is_file():
            rows.append((label, shown_path(report / name)))
    rows.append(("metadata", shown_path(Path(config.output) / "metadata.sqlite")))
    rows.append(("settings", shown_path(Path(config.output) / "config.yaml")))
    rows.append(("log", shown_path(log_path)))

    python = _python()
    steps: list[tuple[str, str]] = []
    command = f"{python} -m serving.generate {shlex.quote(_first_prompt(config, result.model_run))}"
    if result.version is not None:
        steps.append(
            (
                "draw a picture",
                f"{command} --serving-dir {_argument(serving_dir)} --out picture.png",
            )
        )
    elif result.model is not None:
        steps.append(
            (
                "draw all the same",
                f"{command} --model {_argument(result.model)} --out picture.png",
            )
        )
    if result.model_run is not None:
        tensorboard = Path(python).with_name("tensorboard")
        steps.append(
            (
                "watch the curves",
                f"{tensorboard} --logdir {_argument(Path(result.model_run).parent)}",
            )
        )
    if result.run is not None:
        steps += lineage_commands(config.output, result.run, result.version)
    training = config.training
    longer = (
        f"--steps {2 * training.steps}" if training.steps else f"--epochs {2 * training.epochs:g}"
    )
    steps.append(("train longer", f"{python} runner_local.py {longer}"))
    steps.append(("all settings", f"{python} runner_local.py --help"))
    return "\n".join(["Result", *_aligned(rows), "", "Next", *_aligned(steps)])


def lineage_commands(output: str, run: str, version: str | None = None) -> list[tuple[str, str]]:
    """What to type to see where a run's outputs come from: labels and commands."""
    default = os.path.abspath(output) == os.path.abspath(DEFAULT_STORE)
    command = f"{_python()} -m pipeline.lineage"
    page = f"http://localhost:{DEFAULT_PORT}"
    if version is None:
        question, page = f"run {shlex.quote(run)}", f"{page}/run/{urllib.parse.quote(run)}"
    else:
        question, page = f"trace release:{version}", f"{page}/release/{version}"
    return [
        (
            "trace it" if version is not None else "look at the run",
            f"{command} {question}{'' if default else f' --store {_argument(output)}'}",
        ),
        (
            "in a browser",
            f"make lineage{'' if default else f' RUN={_argument(output)}'}, then {page}",
        ),
    ]


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` relative to the current folder where it lies in it; a URL as it is."""
    if "://" in str(path):
        return str(path)
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


def _pushed(result: RunResult, serving_dir: str) -> str:
    first, *others = result.reasons or ("the model is not blessed",)
    unsure = f"unsure: {first}" if result.unsure else ""
    if result.version is not None:
        version = f"version {result.version} in {shown_path(serving_dir)}"
        return f"{version}, {unsure}" if unsure else version
    if result.blessed is False:
        more = f", and {len(others)} more reasons on the evaluation's page" if others else ""
        return f"no, {unsure} (evaluation.when_unsure)" if unsure else f"no: {first}{more}"
    return "no"


def _first_prompt(config: RunConfig, model_run: str | None) -> str:
    """What the run drew a picture of."""
    drawn: list[str] = []
    path = Path(model_run or "") / "validation" / "prompts.json"
    if path.is_file():
        drawn = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    return [*drawn, *(config.validation.prompts or ()), "a drawing of a creature"][0]


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]


def _argument(path: str | os.PathLike[str]) -> str:
    return shlex.quote(shown_path(path))


def _python() -> str:
    shown = os.path.relpath(sys.executable)
    return "python" if shown.startswith("..") else shown
