"""The commands, as a user types them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from made_store import HOSTILE, StoreMaker

from pipeline.lineage import cli

REPO_ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def ask(small, capsysbinary):
    """Runs a command on the small store; returns (status, output, errors)."""

    def run(*arguments, store=small[0]):
        status = cli.main(["--store", str(store), *arguments])
        captured = capsysbinary.readouterr()
        return status, captured.out.decode(), captured.err.decode()

    return run


COMMANDS = (
    ("runs",),
    ("run", "first"),
    ("artifact", "artifact:1"),
    ("trace", "release:1"),
    ("impact", "data/bad"),
    ("diff", "first", "second"),
    ("why", "Trainer"),
    ("compare", "--setting", "learning_rate"),
    ("export", "first"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_every_command_answers_in_text_and_json(ask, command):
    status, text, errors = ask(*command)
    assert (status, errors) == (0, "")
    assert len(text.splitlines()) >= 4
    status, output, errors = ask(*command, "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output, parse_constant=pytest.fail)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_hostile_text_cannot_move_the_cursor(ask, hostile, command):
    for text in HOSTILE:
        arguments = [
            {"first": text, "second": HOSTILE[0], "data/bad": text}.get(a, a) for a in command
        ]
        if command[0] in ("trace", "impact"):
            arguments[1] = text if command[0] == "impact" else "artifact:1"
        if command[0] == "why":
            arguments[1:] = [text, f"--run={text}"]
        if command[0] == "compare":
            arguments[1:] = ["--setting", text]
        for extra in ([], ["--json"]):
            status, output, errors = ask(*arguments, *extra, store=hostile)
            assert status == 0, errors
            shown = output.replace("\n", "")
            assert "\x1b" not in shown
            if not extra and command[0] != "export":
                assert shown.isprintable()
            elif command[0] == "export" and not extra:
                assert all(json.loads(line) for line in output.splitlines())


def test_runs_filter_and_sort(ask):
    def names(*arguments):
        status, output, _ = ask("runs", "--json", *arguments)
        assert status == 0
        return [run["name"] for run in json.loads(output)["runs"]]

    assert names("--status", "failed") == ["failed"]
    assert names("--match", "DATA") == ["other data"]
    assert names("--limit", "2") == ["running", "failed"]
    assert names("--sort", "loss")[:4] == ["second", "again", "first", "other data"]
    assert names("--sort", "loss", "--reverse")[:1] == ["other data"]
    assert names("--sort", "took", "--reverse")[-1] == "running"
    assert names("--reverse", "--limit", "1") == ["first"]
    assert names("--pipeline", "none") == []
    assert ask("runs", "--sort", "colour")[2].startswith("error: runs cannot be sorted by 'colour'")


@pytest.mark.parametrize("columns", [72, 80, 100, 279])
@pytest.mark.parametrize("command", [("runs",), ("compare",), ("impact", "data/bad")], ids=str)
def test_tables_of_runs_fit_the_terminal(ask, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, shown, _ = ask(*command)
    assert status == 0
    assert max(map(len, shown.splitlines())) <= columns
    whole = ask(*command, "--all")[1]
    assert "not shown" not in whole
    if columns == 80:
        left_out = re.search("not shown, for want of width: (.*) \\(--all", shown, re.DOTALL)
        names = " ".join(left_out[1].split()).split(", ")
        assert all(name in whole and name not in shown[: left_out.start()] for name in names)


def test_runs_begin_with_what_matters(ask, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    head = ask("runs")[1].splitlines()[0].split()
    first = ["id", "release", "blessed", "loss", "change", "status", "run", "took"]
    assert head == first
    head = ask("runs", "--all")[1].splitlines()[0].split()
    assert head == [*first, "started", "loss_baseline", "loss_delta", "steps"]
    line = next(line for line in ask("runs", "--all")[1].splitlines() if " first " in line)
    # 0.17 of 0.2.
    assert "-15.0 %" in line
    assert ask("runs", "--sort", "change")[0] == 0
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, ask("runs")[1].splitlines())) <= 40
    # What is asked for is shown.
    assert "loss_delta" in ask("compare", "--metric", "loss_delta")[1].splitlines()[0]


def test_a_failed_run_says_why(ask):
    why = "LossScorer: ResourceExhaustedError: out of memory"
    assert f"\nfailed    {why}\n" in ask("run", "failed")[1]
    assert (
        "\nfailed\n  ResourceExhaustedError: out of memory"
        in ask("why", "LossScorer", "--run", "failed")[1]
    )


def test_a_model_says_where_it_stands(ask, small):
    shown = ask("artifact", f"artifact:{small[1]['second']['model'][0].id}")[1]
    for line in ("run       second (id", "dataset   data/creatures", "releases  2"):
        assert line in shown
    answer = json.loads(ask("artifact", "artifact:1", "--json")[1])
    assert (answer["run"]["name"], answer["datasets"]) == ("first", ["data/creatures"])


def test_json_has_times_and_durations(ask):
    [run] = [r for r in json.loads(ask("runs", "--json")[1])["runs"] if r["name"] == "first"]
    assert run["started"] == "2026-01-01T00:00:00.000Z"
    assert run["ended"] == "2026-01-01T00:02:47.700Z"
    assert run["seconds"] == 167.7
    assert run["status"] == "succeeded"
    trace = json.loads(ask("trace", "1", "--json")[1])
    [fact] = [f for f in trace["facts"] if f["name"] == "learning_rate"]
    assert (fact["section"], fact["value"]) == ("hyperparameters", 3e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope"), "there is no run 'nope'"),
        (("trace", "release:77"), "there is no release '77'"),
        (("impact", "nope"), "is called 'nope'"),
        (("why", "nope"), "there is no step 'nope'"),
        (("diff", "first", "nope"), "there is no run 'nope'"),
        (("export", "nope"), "there is no run 'nope'"),
        (("export", "all", "--format", "dot"), "too large to read"),
        (("compare", "--plot", "x.txt"), "use .png, .svg or .pdf"),
        (("export", "--out", "/none/x"), "/none/x cannot be written: No such file"),
    ],
)
def test_no_answer_is_one_line(ask, arguments, message):
    status, output, errors = ask(*arguments)
    assert status == 1
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_port_that_is_taken(ask):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = ask("serve", "--port", str(port))
    assert status == 1
    assert errors.startswith(f"error: port {port} cannot be used")
    with pytest.raises(SystemExit, match="2"):
        ask("serve", "--port", "80000")


def test_store_before_or_after_the_command(small, capsysbinary):
    path = str(small[0])
    assert cli.main(["runs", "--store", path]) == 0
    after = capsysbinary.readouterr().out
    assert cli.main(["--store", path, "runs"]) == 0
    assert capsysbinary.readouterr().out == after


def test_long_values_show_where_they_differ(tmp_path, capsysbinary):
    maker = StoreMaker()
    for run, end in (("one", "0.9}]"), ("two", "-0.1}]")):
        maker.execution(run, "Evaluator", settings={"config": "x" * 200 + end + "y" * 200})
    maker.save(tmp_path / "db")
    assert cli.main(["--store", str(tmp_path / "db"), "diff", "one", "two"]) == 0
    output = capsysbinary.readouterr().out.decode()
    assert "...xxxxxxxxxxxxxxx0.9}]y" in output
    assert "...xxxxxxxxxxxxxxx-0.1}]y" in output


def test_plot(ask, tmp_path):
    from PIL import Image

    picture = tmp_path / "losses.png"
    assert ask("compare", "--metric", "loss", "--plot", str(picture))[0] == 0
    with Image.open(picture) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_as_a_program(small, tmp_path):
    """No TensorFlow, TFX or ML Metadata is imported; a reader that goes away is no error."""
    script = (
        "import sys\nfrom pipeline.lineage.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'tensorflow', 'tfx', 'ml_metadata', 'nicegui'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", script, "--store", str(small[0])]
    done = subprocess.run([*command, "trace", "1"], cwd=REPO_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    piped = subprocess.run(
        f"{sys.executable} -m pipeline.lineage --store {small[0]} run first | head -1",
        shell=True,
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )
    assert piped.stderr == ""
    assert piped.stdout.startswith("run            first (id ")
    ascii_only = subprocess.run(
        [sys.executable, "-m", "pipeline.lineage", "--store", str(tmp_path / "図"), "runs"],
        cwd=REPO_ROOT,
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert ascii_only.returncode == 1
    assert b"there is no metadata database" in ascii_only.stderr
