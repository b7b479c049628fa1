# PYTHON_ARGCOMPLETE_OK
"""Runs the same pipeline on Vertex AI: `python runner_vertex.py --help`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Nothing here may import TensorFlow or TFX: help and errors in the settings appear at once.
from pipeline import (
    command_line,
    failures,
    housekeeping,
    interruption,
    starting,
    summary,
    withdrawal,
)
from pipeline import console as consoles
from pipeline.config import (
    ConfigError,
    RunConfig,
    check_keys,
    check_output_folder,
    load_config,
    prompt_notes,
    resolve_base_weights,
    resolve_clip_model,
    resolve_dataset,
)
from pipeline.vertex.places import Places, in_image, stage_code
from storage.flags import Words

_UNNAMED_IMAGE, _PROJECT = "emulated", "emulated-project"
_LOGS = Path("runs", "vertex")

_DESCRIPTION = """\
Runs the pipeline of runner_local.py on Vertex AI: checks that everything it needs is there,
compiles it to a job specification and submits it. --dry-run stops after compiling; --emulate runs
the compiled job on this machine, container task by container task, and does not need the cloud."""

_WHERE = ("--pipeline-root", "gs://BUCKET/sdft", "--image", "HOST/PROJECT/REPO/NAME:1")
_EXAMPLES: tuple[tuple[Words, str], ...] = (
    ((*_WHERE, "--wait"), "submits a run and shows its progress"),
    (("--dry-run", "--output", "job.json", *_WHERE), "only compiles"),
    (
        ("--accelerator", "NVIDIA_A100_80GB", "--accelerator-count", "2", *_WHERE),
        "other accelerators for the Trainer",
    ),
    (("--schedule", "0 3 * * 1", *_WHERE), "a run every Monday at three"),
    (
        ("--if-changed", *_WHERE),
        "a run only if the dataset's content has changed since its latest run; for cron",
    ),
    (
        ("--emulate", "--schedule", "0 3 * * 1"),
        "one run of that schedule, on this machine and now",
    ),
    (("--emulate", "--steps", "20"), "runs the compiled job here, below runs/emulated"),
)

_FLAGS: command_line.Flags = {
    **command_line.RUN_FLAGS,
    "Google Cloud": (
        (("vertex.project",), "--project", "project to run in and to bill"),
        (("vertex.region",), "--region", "region for everything"),
        (
            ("vertex.pipeline_root",),
            "--pipeline-root",
            "gs:// folder for all that is written",
        ),
        (("vertex.serving_dir",), "--serving-dir", "gs:// folder that models are pushed to"),
        (("vertex.service_account",), "--service-account", "account that the steps run as"),
        (("vertex.network",), "--network", "VPC network to peer with"),
        (("vertex.image",), "--image", "container image of all steps"),
        (("vertex.api_endpoint",), "--api-endpoint", "address of Vertex's API"),
    ),
    "machines": (
        (("vertex.accelerator",), "--accelerator", "accelerator of the Trainer, or none"),
        (("vertex.accelerator_count",), "--accelerator-count", "accelerators per machine"),
        (("vertex.workers",), "--workers", "number of machines that train together"),
        (("vertex.spot",), "--spot", "whether the Trainer uses Spot machines"),
        (("vertex.retries",), "--retries", "how often a failed step is started again"),
        (("vertex.caching",), "--caching", "whether to reuse steps of former runs"),
        (("vertex.dataflow",), "--dataflow", "whether the Beam steps run on Dataflow"),
    ),
}


def command() -> command_line.Parser:
    """The parser of the command line."""
    parser = command_line.Parser(
        "runner_vertex.py",
        _DESCRIPTION,
        _EXAMPLES,
        notes="docs/vertex.md leads from an empty project to a pushed model.",
        failed="the run failed",
    )
    groups = command_line.add_flags(parser, _FLAGS)
    groups["Google Cloud"].add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="label of the run, for billing; may be given several times",
    )
    run = parser.add_argument_group("this command")
    command_line.add_config_flag(run)
    run.add_argument("--output", metavar="FILE", help="write the compiled job there, as JSON")
    run.add_argument("--dry-run", action="store_true", help="only compile")
    run.add_argument(
        "--wait", action="store_true", help="show the state of every task until the run has ended"
    )
    run.add_argument(
        "--schedule",
        metavar="CRON",
        help="start runs on this schedule, in UTC or, after TZ=ZONE, in that zone, instead of one "
        "now; with --emulate, do one run of the schedule now",
    )
    run.add_argument(
        "--if-changed",
        action="store_true",
        help="submit nothing if the dataset's latest run is still going on, or succeeded with the "
        "present content",
    )
    run.add_argument("--runs", action="store_true", help="only list the latest runs")
    run.add_argument("--cancel", metavar="NAME", help="only cancel a run")
    run.add_argument("--emulate", action="store_true", help="run the compiled job on this machine")
    run.add_argument(
        "--emulate-in",
        metavar="FOLDER",
        default="runs/emulated",
        help="where an emulated run writes (default: runs/emulated)",
    )
    run.add_argument(
        "--emulate-forked",
        action="store_true",
        help="import TFX once for all tasks of an emulated run instead of in every process",
    )
    run.add_argument("--verbose", action="store_true", help="also show all messages of libraries")
    return parser


def _parse(argv: Sequence[str] | None) -> tuple[RunConfig, argparse.Namespace]:
    arguments, flags = command_line.parse(command(), _FLAGS, argv)
    labels = {}
    for text in arguments.label:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--label {text!r} is impossible: it must be KEY=VALUE")
        labels[key] = value
    if labels:
        flags["vertex.labels"] = ("--label", labels)
    if arguments.dry_run and arguments.output is None:
        raise ConfigError("--dry-run compiles into a file: name it with --output")
    for first, second in (
        ("dry_run", "wait"),
        ("dry_run", "schedule"),
        ("dry_run", "emulate"),
        ("dry_run", "runs"),
        ("dry_run", "cancel"),
        ("emulate", "wait"),
        ("emulate", "runs"),
        ("emulate", "cancel"),
        ("schedule", "wait"),
        ("if_changed", "schedule"),
        ("if_changed", "dry_run"),
        ("if_changed", "emulate"),
    ):
        if getattr(arguments, first) and getattr(arguments, second):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in (first, second))
            raise ConfigError(f"{names} contradict each other: give only one")
    return load_config(arguments.config, flags), arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    return failures.exit_status(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    config, arguments = _parse(argv)
    consoles.quiet_environment(arguments.verbose)
    if arguments.emulate:
        return _emulate(config, arguments)
    if arguments.cancel or arguments.runs:
        return _manage(config, arguments)
    return _submit(config, arguments)


def _submit(config: RunConfig, arguments: argparse.Namespace) -> int:
    from pipeline.vertex import fitting, preflight

    preflight.check_config(config.vertex)
    notes = list(fitting.notes_on_machine(config))
    cloud = None
    if not arguments.dry_run:
        # First: without credentials, a dataset in a bucket cannot be read either.
        cloud = preflight.connect(config.vertex)
        config = dataclasses.replace(config, vertex=cloud.vertex)
        notes += cloud.notes
    config, fingerprint = resolve_dataset(config)
    config = in_image(config)
    if arguments.schedule:
        # Each run trains on the content at that time.
        fingerprint = ""
    with _console(_LOGS, arguments.verbose) as console:
        if arguments.if_changed:
            status = _needless(cloud, config.dataset.path, fingerprint, console)
            if status is not None:
                return status
        scheduled = bool(arguments.schedule)
        if scheduled and (note := _schedule_note(config.dataset.path)):
            console.print(f"note: {note}")
        for note in notes:
            console.print(f"note: {note}")
        lineage = withdrawal.vertex_place(config.vertex) if cloud is not None else ""
        job = _compile(
            config, fingerprint, _places(config), console, lineage, only_on_change=scheduled
        )
        console.print(f"Compiled: {fitting.in_words(config, _places(config).serving_dir)}.")
        if arguments.output is not None:
            _write_job(job, arguments.output)
            console.print(f"The job specification is in {arguments.output}.")
        if cloud is None:
            if not preflight.is_pinned(str(config.vertex.image)):
                console.print("It names the image by tag; submitting it pins the digest.")
            return 0
        return _start(cloud, job, arguments, console)


def _schedule_note(dataset: str) -> str:
    """What to tell the user about a dataset for a schedule; "" for nothing."""
    # Importing huggingface_hub takes half a second; import it only if needed.
    from storage import hub

    if not dataset.startswith(hub.SCHEME):
        return ""
    return (
        f"{dataset} is one commit, which never changes: after the first successful run, the runs "
        "of this schedule have nothing to do"
    )


def _needless(cloud: Any, dataset: str, fingerprint: str, console: consoles.Console) -> int | None:
    """The exit status if no run is needed, or if that is unknown; otherwise `None`."""
    from pipeline.vertex import submit

    consoles.settle_logging()
    try:
        reason = submit.Vertex(cloud).needless(dataset, fingerprint)
    except submit.SubmissionError as error:
        console.print(f"error: {error}")
        return failures.EXIT_FAILED
    if not reason:
        return None
    console.print(f"Nothing is submitted: {reason}.")
    return 0


def _start(
    cloud: Any, job: dict[str, Any], arguments: argparse.Namespace, console: consoles.Console
) -> int:
    from pipeline.vertex import submit

    try:
        vertex = submit.Vertex(cloud)
        if arguments.schedule:
            name = vertex.schedule(job, arguments.schedule)
            console.print(f"Scheduled: {name}\n{vertex.console_link(name)}")
            return 0
        name = vertex.submit(job)
        console.print(f"Submitted: {name}\n{vertex.console_link(name)}")
        if arguments.wait:
            vertex.wait(name, console.print)
            console.print("Done.")
        return 0
    except submit.SubmissionError as error:
        console.print(f"error: {error}")
        return failures.EXIT_FAILED
    except submit.RunFailedError as error:
        console.print(f"\n{error}")
        return failures.EXIT_FAILED
    except KeyboardInterrupt as stop:
        console.print("Interrupted: whatever was submitted goes on; --cancel ends a run.")
        return interruption.exit_status(interruption.signal_of(stop))


def _manage(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Lists runs, or cancels one."""
    from pipeline.vertex import preflight

    cloud = preflight.log_in(config.vertex)
    with _console(_LOGS, arguments.verbose) as console:
        from pipeline.vertex import submit

        consoles.settle_logging()
        try:
            vertex = submit.Vertex(cloud)
            if arguments.cancel:
                vertex.cancel(arguments.cancel)
                console.print(f"{arguments.cancel} is being cancelled.")
                return 0
            for name, state, created in vertex.runs():
                console.print(f"{created}  {state:<10}  {name}")
        except submit.SubmissionError as error:
            console.print(f"error: {error}")
            return failures.EXIT_FAILED
    return 0


def _emulate(config: RunConfig, arguments: argparse.Namespace) -> int:
    folder = Path(arguments.emulate_in).absolute()
    check_output_folder(str(folder))
    check_keys(config)
    config, fingerprint = resolve_dataset(config)
    root = config.vertex.pipeline_root or str(folder)
    config = in_image(config, others="://" not in root)
    scheduled = bool(arguments.schedule)
    if scheduled:
        fingerprint = ""
    places = Places.below(root, config.vertex.serving_dir)
    with (
        housekeeping.output_lock(str(folder)),
        _console(folder, arguments.verbose) as console,
        housekeeping.own_temporary_folder() as temporary,
        contextlib.ExitStack() as stack,
    ):
        housekeeping.settle_in(str(folder), places.serving_dir)
        code, home = Path(temporary, "code"), Path(temporary, "home")
        stage_code(code)
        home.mkdir()
        from pipeline.lineage import text
        from pipeline.lineage.model import shown_seconds
        from pipeline.vertex.emulation import custom_jobs, emulator

        # On Vertex the image has to set it.
        key = config.serving.sign_key_env
        environment = emulator.container_environment(code, home, [key] if key else [])
        fresh = emulator.FreshProcesses(code)
        launch: emulator.Launcher = fresh
        if config.vertex.trains_in_custom_job or config.tuning.parallel_trials > 1:
            jobs = custom_jobs.EmulatedJobs(fresh, folder / "logs", environment)
            address = stack.enter_context(custom_jobs.serve(jobs))
            vertex = dataclasses.replace(
                config.vertex, project=config.vertex.project or _PROJECT, api_endpoint=address
            )
            config = dataclasses.replace(config, vertex=vertex)
        job = _compile(config, fingerprint, places, console, str(folder), only_on_change=scheduled)
        if arguments.output is not None:
            _write_job(job, arguments.output)
        if arguments.emulate_forked:
            launch = stack.enter_context(emulator.fork_server(code, job, environment))
        run = emulator.Emulator(
            job,
            str(folder / housekeeping.DATABASE_NAME),
            folder / "logs",
            launch,
            environment,
            console.print,
        )
        try:
            outcomes = run.run()
        except emulator.TaskError as error:
            console.print(f"\n{error}")
            return failures.EXIT_FAILED
        except KeyboardInterrupt as stop:
            interruption.ignore_signals()
            number = interruption.signal_of(stop)
            during = f" during {run.task}" if run.task else ""
            console.print(
                f"\nInterrupted by {interruption.in_words(number)}{during}: what was done before "
                "is kept, and the same command goes on from there."
            )
            return interruption.exit_status(number)
        store = housekeeping.open_store(str(folder), read_only=True)
        result = summary.read_result(store, [o.execution_id for o in outcomes if o.execution_id])
        table = text.columns([[o.task, o.state.value, shown_seconds(o.seconds)] for o in outcomes])
        total = shown_seconds(sum(o.seconds for o in outcomes))
        logs = summary.shown_path(folder / "logs" / f"{run.run_id}-STEP.log")
        console.print(
            "\n".join(
                [
                    *("", *table, f"{total} in all", ""),
                    *(_result(result, places.serving_dir), f"Log of each step: {logs}"),
                ]
            )
        )
    return 0


def _result(result: summary.RunResult, serving_dir: str) -> str:
    lines = []
    if result.loss is not None and result.loss_baseline is not None:
        lines.append(
            f"Held-out loss: {result.loss_baseline:.4f} {result.baseline} -> {result.loss:.4f} "
            "fine-tuned"
        )
    if result.machine_hours is not None:
        lines.append(f"Trained on: {result.machine_hours}")
    lines.append(f"Pushed: {summary.pushed_text(result, serving_dir)}")
    if set_aside := summary.rejected_text(result):
        lines.append(f"Rows set aside: {set_aside}")
    for label, folder, name in (
        ("Dataset", result.dataset_report, "dataset.html"),
        ("Evaluation", result.report, "evaluation.html"),
    ):
        if folder is not None:
            lines.append(f"{label}: {summary.shown_path(Path(folder, name))}")
    return "\n".join(lines)


def _places(config: RunConfig) -> Places:
    assert config.vertex.pipeline_root is not None
    return Places.below(config.vertex.pipeline_root, config.vertex.serving_dir)


def _compile(
    config: RunConfig,
    fingerprint: str,
    places: Places,
    console: consoles.Console,
    lineage: str,
    *,
    only_on_change: bool = False,
) -> dict[str, Any]:
    config, base_model = resolve_base_weights(config, fetch=False)
    config = resolve_clip_model(config)
    start = starting.find_start_for_vertex(config, base_model, places.serving_dir)
    if said := starting.told(config.model.start_from, start, finds_dataset=True):
        console.print(said)
    known_by = withdrawal.look_up(config, start, lineage, [places.root, places.serving_dir])
    if said := withdrawal.told(config, start, known_by):
        console.print(said)
    for note in prompt_notes(config):
        console.print(f"note: {note}")
    console.print("Compiling the pipeline ...")
    from pipeline.vertex.compile import compile_job

    consoles.settle_logging()
    return compile_job(
        config,
        dataset_fingerprint=fingerprint,
        base_model=base_model,
        image=config.vertex.image or _UNNAMED_IMAGE,
        places=places,
        start=start,
        known_by=known_by,
        only_on_change=only_on_change,
    )


def _console(folder: Path, verbose: bool) -> contextlib.AbstractContextManager[consoles.Console]:
    name = f"vertex-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
    return consoles.open_console(folder / "logs" / name, verbose)


def _write_job(job: dict[str, Any], path: str) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(job, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output {path} cannot be written ({error.strerror}): name another file"
        ) from None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; the threads of TensorFlow and Beam would only delay the end and write
    # to the terminal.
    os._exit(status)
