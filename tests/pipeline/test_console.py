"""What the console lets through, and where neither log nor terminal takes any more."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from pipeline.console import open_console

REPO_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import logging, os, sys
from pathlib import Path
from pipeline import console
with console.open_console(Path(sys.argv[1])) as shown:
    for number in range(20):
        shown.print(f"line {number}")
        logging.getLogger("trainer").info("progress %d", number)
        logging.getLogger("library").debug("noise")
        print("native", file=sys.stderr)
"""


def run(log: Path, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(log)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_ROOT,
        check=False,
    )


def test_a_log_on_a_full_disk_is_said_once(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.symlink_to("/dev/full")
    done = run(log)
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    [warning] = [line for line in lines if "warning" in line]
    assert f"the log {log} cannot be written (No space left on device)" in warning
    assert [line for line in lines if line != warning] == [
        line for number in range(20) for line in (f"line {number}", f"  progress {number}")
    ]


def test_a_terminal_that_is_gone_ends_no_run(tmp_path: Path) -> None:
    with open("/dev/full", "w") as gone:
        done = run(tmp_path / "run.log", gone.fileno())
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / "run.log").read_text()
    assert "line 19" in log
    assert "progress 19" in log


def test_a_secret_in_an_address_reaches_neither_the_terminal_nor_the_log(tmp_path, capfd):
    """As where a store leads on to a signed address, and its library speaks of that."""
    signed = "https://host/x?a=b&X-Amz-Signature=hunter2"
    with open_console(tmp_path / "run.log") as console:
        logging.getLogger("components.some").warning("cannot read %s", signed)
        logging.getLogger("somelibrary").debug("GET %s", signed)
        try:
            raise OSError(f"403: {signed}")
        except OSError:
            logging.getLogger("components.some").exception("failed")
        console.print(f"see http://me:hunter2@host/x\n{signed}")
    shown, log = "".join(capfd.readouterr()), (tmp_path / "run.log").read_text()
    assert "hunter2" not in shown + log
    for text in (
        "cannot read https://host/x?a=b&X-Amz-Signature=***",
        "OSError: 403: https://host/x",
    ):
        assert text in shown
        assert text in log
    assert "GET https://host/x?a=b&X-Amz-Signature=***" in log
    assert "see http://***@host/x" in shown
