"""The last screen of a run: the results, where they are, what to do next."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from components.pages import RELEASE_PLACE
from pipeline import command_line
from pipeline.config import RunConfig
from pipeline.disk import folder_bytes, in_words
from pipeline.lineage.locations import DEFAULT_PORT, DEFAULT_STORE
from serving.releases import EXPORT_NAME, FOLDERS
from storage.commands import (
    CHECKOUT,
    module_command,
    place,
    program_command,
    script_command,
    shown_path,
)
from storage.model_manifest import ModelManifest
from storage.verdict import UNSURE, VERDICT

REPORT_NAME = "report"
RUNNER = "runner_local.py"
_REPORT_TYPE = "components.EvaluationReport"
_DATASET_REPORT_TYPE = "components.DatasetReport"
_WITHDRAWN_REPORT_TYPE = "components.WithdrawnReport"
# The name in `pipeline.class_pictures`, whose import would load TFX, which takes seconds.
_CLASS_PICTURES = "ClassPictures"
_SEARCH_PAGE = "tuning.html"
_REJECTS_TYPE = "components.RejectedRows"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run produced, or took from the cache; `None` for what it did not produce.

    Attributes:
        loss: Held-out loss of the fine-tuned model.
        loss_baseline: Held-out loss of the baseline.
        baseline: What the baseline was.
        blessed: Whether the evaluation found the model good enough to push.
        unsure: Whether the evaluation could not decide.
        reasons: Why the model is not good enough, or why the evaluation could not decide.
        model: Folder of the model.
        refusal: Why the pusher pushed nothing.
        version: Version in the serving directory.
        model_run: Folder with the TensorBoard logs.
        report: Folder with the report's files.
        search: Folder with the page about the search for hyperparameters.
        found: What the search found, in words.
        dataset_report: Folder with the page about the dataset.
        withdrawn_report: Folder with the page about what was taken out of the dataset.
        rejected: Number of rows of the dataset that were set aside.
        rejects: Folder with the list of these rows.
        run: Name of the run in ML Metadata.
        folders: Folders of everything that it left or took from the cache.
        training_id: Id of the training of the model.
        machine_hours: Which extra machines training had, and for how long, in words; `None` for
            none.
    """

    loss: float | None
    loss_baseline: float | None
    baseline: str | None
    blessed: bool | None
    unsure: bool
    reasons: tuple[str, ...]
    refusal: str | None
    model: str | None
    version: str | None
    model_run: str | None
    report: str | None
    search: str | None
    found: str | None
    dataset_report: str | None
    withdrawn_report: str | None
    rejected: int
    rejects: str | None
    run: str | None
    folders: tuple[str, ...] = ()
    training_id: str | None = None
    machine_hours: str | None = None


def read_result(store: metadata_store.MetadataStore, execution_ids: Iterable[int]) -> RunResult:
    """Reads a run's results from the outputs of its executions."""
    execution_ids = list(execution_ids)
    events = store.get_events_by_execution_ids(execution_ids)
    contexts = store.get_contexts_by_execution(execution_ids[0]) if execution_ids else []
    outputs = {e.artifact_id for e in events if e.type == mlmd.Event.OUTPUT}
    by_type: dict[str, mlmd.Artifact] = {}
    baseline: str | None = None
    folders = []
    of_class = frozenset(_of_class(store, execution_ids))
    left_by_them = {e.artifact_id for e in events if e.execution_id in of_class}
    for artifact in store.get_artifacts_by_id(sorted(outputs)):
        if artifact.id in left_by_them:
            folders.append(artifact.uri)
            continue
        by_type[artifact.type] = artifact
        folders.append(artifact.uri)
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
    trained = properties("Model")
    found = properties("HyperParameters")

    def number(name: str) -> float | None:
        return evaluation[name].double_value if name in evaluation else None

    return RunResult(
        loss=number("loss"),
        loss_baseline=number("loss_baseline"),
        baseline=baseline,
        blessed=bool(blessing["blessed"].int_value) if "blessed" in blessing else None,
        unsure=VERDICT in blessing and blessing[VERDICT].string_value == UNSURE,
        reasons=tuple(blessing["reasons"].string_value.splitlines())
        if "reasons" in blessing
        else (),
        refusal=pushed["reason"].string_value if "reason" in pushed else None,
        model=uri("Model"),
        version=pushed["pushed_version"].string_value or None
        if "pushed_version" in pushed
        else None,
        model_run=uri("ModelRun"),
        report=uri(_REPORT_TYPE),
        search=uri("TunerResults"),
        found=found["found"].string_value if "found" in found else None,
        dataset_report=uri(_DATASET_REPORT_TYPE),
        withdrawn_report=uri(_WITHDRAWN_REPORT_TYPE),
        rejected=rejects["rejected_total"].int_value if "rejected_total" in rejects else 0,
        rejects=uri(_REJECTS_TYPE),
        run=next((c.name for c in contexts if c.type == "pipeline_run"), None),
        folders=tuple(folders),
        training_id=trained["training_id"].string_value if "training_id" in trained else None,
        machine_hours=trained["machine_hours"].string_value if "machine_hours" in trained else None,
    )


def _of_class(store: metadata_store.MetadataStore, execution_ids: Iterable[int]) -> Iterator[int]:
    """Ids of executions that read class pictures: their outputs are not about the dataset."""
    for execution_id in execution_ids:
        contexts = store.get_contexts_by_execution(execution_id)
        if any(c.type == "node" and c.name.endswith(f".{_CLASS_PICTURES}") for c in contexts):
            yield execution_id


def copy_reports(result: RunResult, output: str) -> Path:
    """Copies the files of a run's reports to `<output>/report`, replacing what is there.

    Returns:
        The folder.
    """
    target = Path(output) / REPORT_NAME
    partial = target.with_name(f".{REPORT_NAME}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for source in (result.report, result.dataset_report, result.withdrawn_report):
        if source is not None:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    if result.search is not None:
        shutil.copy(Path(result.search, _SEARCH_PAGE), partial)
    for page in ("evaluation.html", "withdrawn.html", "requests/*/withdrawn.html"):
        for path in partial.glob(page):
            _fill_in_release(path, result)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def _fill_in_release(page: Path, result: RunResult) -> None:
    """Fills in the release on a model's page, which was written before the push."""
    release = result.version or (result.refusal and f"none: {result.refusal}")
    if release:
        text = page.read_text("utf-8")
        page.write_text(text.replace(RELEASE_PLACE, html.escape(release)), "utf-8")


def last_screen(
    config: RunConfig,
    result: RunResult,
    serving_dir: str,
    log_path: Path,
    argv: Sequence[str] = (),
) -> str:
    """The text of the last screen.

    Args:
        config: The run's settings.
        result: What the run produced.
        serving_dir: Where the model was pushed to.
        log_path: The run's log.
        argv: The run's command line, on which suggested commands are based.
    """
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
    if result.found is not None:
        rows.append(("found", result.found))
    rows.append(("pushed", pushed_text(result, serving_dir)))
    if set_aside := rejected_text(result):
        rows.append(("rows set aside", set_aside))
    report = Path(config.output) / REPORT_NAME
    for label, name in (
        ("dataset", "dataset.html"),
        ("search", _SEARCH_PAGE),
        ("evaluation", "evaluation.html"),
        ("taken out", "withdrawn.html"),
        ("pictures", "before_after.png"),
        ("loss curve", "loss_curve.png"),
    ):
        if (report / name).is_file():
            rows.append((label, shown_path(report / name)))
    rows.append(("on disk", _disk_text(result, config.output, serving_dir)))
    rows.append(("metadata", shown_path(Path(config.output) / "metadata.sqlite")))
    rows.append(("settings", shown_path(Path(config.output) / "config.yaml")))
    rows.append(("log", shown_path(log_path)))

    steps: list[tuple[str, str]] = []
    draw = "serving.generate", _first_prompt(config, result.model_run)
    to = "--out", Path("picture.png")
    if result.version is not None:
        steps.append(
            (
                "draw a picture",
                module_command(*draw, "--serving-dir", place(serving_dir), *to),
            )
        )
    elif result.model is not None:
        steps.append(("draw anyway", module_command(*draw, "--model", place(result.model), *to)))
    if result.model_run is not None:
        logs = place(result.model_run.rstrip("/").rpartition("/")[0])
        steps.append(("watch the curves", program_command("tensorboard", "--logdir", logs)))
    if result.run is not None:
        steps += lineage_commands(config.output, result.run, result.version)
    training = config.training
    longer = (
        ("--steps", f"{2 * training.steps}")
        if training.steps
        else ("--epochs", f"{2 * training.epochs:g}")
    )
    others = command_line.without(argv, "--steps", "--epochs")
    train_longer = script_command(RUNNER, *others, *longer)
    if (step := _goes_on_from(result.model, config.output)) is not None:
        train_longer += f", which goes on from step {step}"
    steps.append(("train longer", train_longer))
    place_of = () if _is_default(config.output) else ("--output", Path(config.output))
    steps.append(("free the disk", module_command("pipeline.clean", "--dry-run", *place_of)))
    steps.append(("all settings", script_command(RUNNER, "--help")))
    return "\n".join(["Result", *_aligned(rows), "", "Next", *_aligned(steps)])


def lineage_commands(output: str, run: str, version: str | None = None) -> list[tuple[str, str]]:
    """Commands that show where a run's outputs come from: labels and commands."""
    page = f"http://localhost:{DEFAULT_PORT}"
    if version is None:
        question, page = ["run", run], f"{page}/run/{urllib.parse.quote(run)}"
    else:
        question, page = ["trace", f"release:{version}"], f"{page}/release/{version}"
    store = () if _is_default(output) else ("--store", Path(output))
    return [
        (
            "trace it" if version is not None else "look at the run",
            module_command("pipeline.lineage", *question, *store),
        ),
        ("in a browser", f"{module_command('pipeline.lineage', *store, 'serve')}, then {page}"),
    ]


def _is_default(output: str) -> bool:
    return os.path.abspath(output) == str(CHECKOUT / DEFAULT_STORE)


def _disk_text(result: RunResult, output: str, serving_dir: str) -> str:
    """Disk space of a run, and of its output folder with all runs."""
    folders = [*result.folders]
    if result.training_id:
        folders.append(os.path.join(output, "checkpoints", result.training_id))
    if result.version:
        folders += [os.path.join(serving_dir, name, result.version) for name in FOLDERS]
    taken = sum(map(folder_bytes, folders))
    return f"{in_words(taken)} of this run, {in_words(folder_bytes(output))} of all runs here"


def rejected_text(result: RunResult) -> str:
    """How many rows were set aside, and where they are listed; "" for none."""
    if not result.rejected or not result.rejects:
        return ""
    return f"{result.rejected}, listed in {shown_path(result.rejects)}"


def pushed_text(result: RunResult, serving_dir: str) -> str:
    """The version that was pushed, or why none was."""
    first, *others = result.reasons or ("the model is not blessed",)
    unsure = f"unsure: {first}" if result.unsure else ""
    if result.version is not None:
        version = f"version {result.version} in {shown_path(serving_dir)}"
        return f"{version}, {unsure}" if unsure else version
    if result.blessed is False:
        more = f", and {len(others)} more reasons on the evaluation's page" if others else ""
        return f"no, {unsure} (evaluation.when_unsure)" if unsure else f"no: {first}{more}"
    return f"no: {result.refusal}" if result.refusal else "no"


def _goes_on_from(model: str | None, output: str) -> int | None:
    """The step that a longer training would continue from; `None` if it would start anew."""
    if model is None:
        return None
    manifest = ModelManifest.find(os.path.join(model, EXPORT_NAME))
    if manifest is None or manifest.training_id is None:
        return None
    # A clean-up after the run may have removed the checkpoints.
    there = os.path.isdir(os.path.join(output, "checkpoints", manifest.training_id))
    return manifest.goes_on_from if there else None


def _first_prompt(config: RunConfig, model_run: str | None) -> str:
    """A prompt that the run drew a picture of."""
    drawn: list[str] = []
    path = Path(model_run or "") / "validation" / "prompts.json"
    if path.is_file():
        drawn = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    return [*drawn, *(config.validation.prompts or ()), "a drawing of a creature"][0]


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]
