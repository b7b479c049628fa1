"""What a run prints to be typed next, typed: in the checkout and elsewhere."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

import runner_local
from pipeline import command_line, housekeeping, summary
from pipeline.config import load_config
from pipeline.lineage import cli
from serving.releases import rollback_command
from storage.model_manifest import ModelManifest

REPO_ROOT = Path(__file__).resolve().parents[2]
RUN = "2026-01-01T00:00:00.5"
# What ends each at once, after it has understood all that is before it, and what it then says.
ENDS = {
    "draw a picture": ("--count 0", "--count is 0"),
    "trace it": ("", "there is no release '17' in"),
    "look at the run": ("", RUN),
    "in a browser": ("--port -1", "port"),
    "train longer": ("--nothing", "there is no flag '--nothing'"),
    "free the disk": ("", "would be removed: nothing"),
    "all settings": ("", "--max-rejected-fraction"),
    "roll back": ("", "there is no serving directory"),
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder, with a run in its metadata, that a shell takes in quotes alone."""
    folder = tmp_path / 'it\'s $HOME, "mine"'
    folder.mkdir()
    store = housekeeping.open_store(str(folder))
    type_id = store.put_execution_type(mlmd.ExecutionType(name="Some"))
    context_type = store.put_context_type(mlmd.ContextType(name="pipeline_run"))
    store.put_execution(
        mlmd.Execution(type_id=type_id, last_known_state=mlmd.Execution.COMPLETE),
        [],
        [mlmd.Context(type_id=context_type, name=RUN)],
    )
    return folder


def printed(output: Path, argv: list[str]) -> dict[str, str]:
    """By label, the commands of the last screens of a run that pushed and of one that failed."""
    config = load_config(
        None, command_line.parse(runner_local.command(), runner_local._FLAGS, argv)[1]
    )
    serving_dir = str(output / "serving_model")
    result = summary.RunResult(
        loss=None, loss_baseline=None, baseline=None, blessed=True, unsure=False,
        reasons=(), refusal=None, model=None, version="17",
        model_run=str(output / "artifacts" / "Trainer" / "model_run" / "7"), report=None,
        search=None, found=None, dataset_report=None, withdrawn_report=None,
        rejected=0, rejects=None, run=RUN,
    )  # fmt: skip
    screen = summary.last_screen(config, result, serving_dir, output / "run.log", argv)
    rows = re.findall(r"^  (\w[\w ]*?) {2,}(.*)$", screen.partition("Next\n")[2], re.MULTILINE)
    return {
        **dict(rows),
        **dict(summary.lineage_commands(str(output), "latest")[:1]),
        "roll back": rollback_command(serving_dir, 3),
    }


@pytest.mark.parametrize("place", [REPO_ROOT, Path("/")], ids=str)
def test_a_printed_command_works_where_it_is_printed(
    output: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    argv = ["--output", str(output), "--dataset=some set", "--epochs", "2", "--learning-rate=5e-4"]
    commands = printed(output, argv)
    program, *flags = shlex.split(commands.pop("watch the curves"))
    assert Path(program).is_file()
    assert flags[0] == "--logdir"
    assert Path(flags[1]).absolute() == output / "artifacts" / "Trainer" / "model_run"

    assert commands.keys() == ENDS.keys()
    for label, command in commands.items():
        more, said = ENDS[label]
        command = re.sub(r"(\)?)(, then http.*)?$", rf" {more}\1", command, count=1)
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=place, check=False
        )
        assert said in done.stdout + done.stderr, (command, done)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", [REPO_ROOT, Path("/")], ids=str)
def test_the_examples_of_a_help_are_commands_that_are_understood(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    parser = cli.command()
    examples = re.findall(r"-m pipeline.lineage (.*?)\)?$", str(parser.epilog), re.MULTILINE)
    assert len(examples) == 13
    for example in examples:
        parser.parse_args(shlex.split(example))
    local = runner_local.command()
    lines = re.findall(r"^  (\S+ \S*runner_local.py.*)$", str(local.epilog), re.MULTILINE)
    assert len(lines) == 7
    for line in lines:
        python, script, *flags = shlex.split(line)
        assert Path(python).is_file()
        assert Path(script).is_file()
        command_line.parse(local, runner_local._FLAGS, flags)


def test_training_longer_takes_every_flag_of_the_run(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO_ROOT)
    settings = output / "my settings.yaml"
    settings.write_text("training: {log_every_steps: 3}\n")
    given = ["--config", str(settings), "--output", str(output), "--dataset", "a b", "--verbose"]
    flags = {"training.steps": ("--steps", 4), "output": ("--output", str(output))}
    config = load_config(settings, flags)
    result = summary.RunResult(
        loss=None, loss_baseline=None, baseline=None, blessed=None, unsure=False,
        reasons=(), refusal=None, model=None, version=None,
        model_run=None, report=None, search=None, found=None, dataset_report=None,
        withdrawn_report=None, rejected=0, rejects=None, run=None,
    )  # fmt: skip
    model = output / "my model"
    (model / "Format-Serving").mkdir(parents=True)
    manifest = ModelManifest(preset="tiny", image_size=128, training_id="0123")
    result = dataclasses.replace(result, model=str(model))
    checkpoints = output / "checkpoints" / "0123"
    checkpoints.mkdir(parents=True)
    for steps, step in ((["--steps", "4"], None), (["--steps=4"], None), ([], 4)):
        dataclasses.replace(manifest, goes_on_from=step).write(str(model / "Format-Serving"))
        screen = summary.last_screen(config, result, "", output / "run.log", [*steps, *given])
        [longer] = re.findall(r"^  train longer +(.*)$", screen, re.MULTILINE)
        promise = ", which goes on from step 4" if step else ""
        assert longer.endswith(f" 8{promise}")
        longer = longer.removesuffix(promise)
        assert shlex.split(longer)[1:] == ["runner_local.py", *given, "--steps", "8"]
    # Nor does it where a clean-up has removed what it would go on from.
    checkpoints.rmdir()
    assert "which goes on from" not in summary.last_screen(config, result, "", output / "run.log")
