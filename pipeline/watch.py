"""Runs the pipeline whenever the dataset's content changes: `runner_local.py --watch 15m`.

After a change, a run starts only once two looks in a row find the same content, so that it does not
train on files that are still being written. Runs are separate processes: this one stays small, and
each run uses the code as it is then.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pipeline import interruption
from pipeline.config import ConfigError
from pipeline.lineage import LineageError, locate
from pipeline.lineage.locations import lock_holder
from pipeline.lineage.model import Execution, Run, RunStatus, shown_seconds
from storage.addresses import redacted
from storage.user_errors import UserError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_INTERVAL = re.compile(rf"([0-9]+)([{''.join(_SECONDS)}])")
_LONGEST_PAUSE = float(_SECONDS["d"])
_SHOWN_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        done: Whether it ended well.
        text: The result, or why the run failed, in a line.
    """

    done: bool
    text: str


def parse_interval(text: str) -> float:
    """Converts a time such as `90s`, `15m`, `2h` or `1d` to seconds.

    Raises:
        ConfigError: The text is not such a time.
    """
    found = _INTERVAL.fullmatch(text)
    if not found or not int(found[1]):
        raise ConfigError(
            f"--watch {redacted(repr(text))} is impossible: it must be the time between two looks "
            "at the dataset, such as 90s, 15m, 2h or 1d"
        )
    return float(int(found[1]) * _SECONDS[found[2]])


class Watcher:
    """Looks at a dataset repeatedly and decides when to run."""

    def __init__(
        self,
        look: Callable[[], str],
        run: Callable[[], Outcome],
        *,
        interval: float,
        busy: Callable[[], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts without having looked at anything.

        Args:
            look: Returns the fingerprint of the dataset; raises a `UserError` or an `OSError` if it
                cannot.
            run: Runs the pipeline.
            interval: Seconds between two looks.
            busy: Returns why no run can start now; "" if one can.
            say: Called with every decision, in a line.
            clock: Returns the time, in seconds since 1970.
        """
        self._look, self._run, self._busy, self._clock = look, run, busy, clock
        self._interval, self._tell = interval, say
        self._seen = self._done = self._failed = ""
        self._done_at = self._not_before = 0.0
        self._failures = 0

    def watch(self, sleep: Callable[[float], object] = time.sleep) -> NoReturn:
        """Watches until it is interrupted."""
        while True:
            self.decide()
            sleep(self._interval)

    def decide(self) -> None:
        """Looks once, and acts on it."""
        now = self._clock()
        later = f"the next look is at {_moment(now + self._interval, now)}"
        try:
            found = self._look()
        except (UserError, OSError) as error:
            self._seen = ""
            self._say(f"the dataset cannot be read: {_one_line(error)}; {later}")
            return
        new = f"new content ({found[:_SHOWN_DIGITS]})"
        if found == self._done:
            self._seen = found
            self._say(f"unchanged since the run that ended at {_moment(self._done_at, now)}")
        elif found != self._seen:
            self._seen = found
            self._say(f"{new}: a run begins when the next look finds the same; {later}")
        elif found == self._failed and now < self._not_before:
            again = _moment(self._not_before, now)
            self._say(f"unchanged since a run failed {self._times()}: next try at {again}")
        elif reason := self._busy():
            self._say(f"{new}, but {reason}; {later}")
        else:
            self._start(found, f"{new}" if found != self._failed else "trying again")

    def _start(self, found: str, why: str) -> None:
        self._say(f"{why}: a run begins")
        since = self._clock()
        outcome = self._run()
        now = self._clock()
        took = shown_seconds(now - since)
        if outcome.done:
            self._done, self._done_at = found, now
            self._failed, self._failures = "", 0
            self._say(f"the run is done after {took}: {outcome.text}")
            return
        self._failed = found
        self._failures += 1
        pause = min(self._interval * 2**self._failures, max(self._interval, _LONGEST_PAUSE))
        self._not_before = now + pause
        self._say(
            f"the run failed after {took}, {self._times()}: {outcome.text}; next try at "
            f"{_moment(self._not_before, now)}, or when the content changes"
        )

    def _times(self) -> str:
        return "once" if self._failures == 1 else f"{self._failures} times in a row"

    def _say(self, text: str) -> None:
        now = datetime.datetime.fromtimestamp(self._clock())
        self._tell(f"{now:%Y-%m-%d %H:%M:%S}  {text}")


def run_process(command: Sequence[str], output: str) -> Outcome:
    """Runs the pipeline in a separate process; passes signals to end on to it, and waits.

    Args:
        command: The command line.
        output: The run's output folder, whose ML Metadata has the result.
    """
    since = time.time()
    with tempfile.TemporaryFile() as errors:
        process: subprocess.Popen[bytes] | None = None
        try:
            with interruption.signals_wait():
                # In its own session: otherwise Ctrl-C in a terminal would reach it twice.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            status = process.wait()
        except KeyboardInterrupt as stop:
            interruption.ignore_signals()
            if process is not None:
                process.send_signal(interruption.signal_of(stop))
                process.wait()
            raise
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if status == 0:
        return Outcome(True, _result(output, since))
    why = _failure(output, since) or next(
        (line.removeprefix("error: ") for line in said if line.startswith("error: ")),
        said[-1] if said else "",
    )
    return Outcome(False, redacted(why) or f"it ended with status {status}")


def in_use(output: str) -> str:
    """Why no run can start in an output folder now; "" if one can."""
    try:
        holder = lock_holder(Path(output))
    except OSError:
        return ""
    return f"another run (process {holder}) is working in {output}" if holder else ""


def _result(output: str, since: float) -> str:
    """The result of the run since then."""
    latest = _latest(output, since)
    if latest is None:
        return "there was nothing to do"
    run, _ = latest
    if run.status is RunStatus.CACHED:
        return "every step was up to date"
    loss = run.metrics.get("loss")
    pushed = f"release {run.releases[-1]}" if run.releases else "not pushed"
    return pushed if loss is None else f"{pushed}, held-out loss {loss:.4f}"


def _failure(output: str, since: float) -> str:
    """Which step of the run since then failed, and why; "" if none did."""
    _, steps = _latest(output, since) or (None, [])
    failed = [step for step in steps if step.error.strip()]
    return f"{failed[-1].node}: {_one_line(failed[-1].error)}" if failed else ""


def _latest(output: str, since: float) -> tuple[Run, list[Execution]] | None:
    """The latest recorded run and its steps, if it began after `since`."""
    try:
        with locate(output).open() as store:
            run = store.find_run("latest")
            if run.started < since * 1000:
                return None
            return run, store.steps(run.id)
    except LineageError:
        return None


def _one_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return redacted(lines[0]) if lines else type(error).__name__


def _moment(then: float, now: float) -> str:
    """A time, with the date unless it is today's."""
    moment, today = (datetime.datetime.fromtimestamp(seconds) for seconds in (then, now))
    return f"{moment:%H:%M:%S}" if moment.date() == today.date() else f"{moment:%Y-%m-%d %H:%M:%S}"
