"""`RowChecker` in a process of its own: Beam's threads cannot check rows in parallel.

Decoding releases Python's global lock for only a third of the time a row takes. The process runs
this module as a script: unlike a process of `multiprocessing`, it does not import the program that
started it, with TensorFlow, TFX and Beam.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO, cast

from components.caption_example_gen.rows import Batch, CheckSettings, RowChecker, Stretch
from components.caption_example_gen.sources import Unit
from storage.user_errors import UserError
from trainer.text.tokenizer import token_count


class CheckProcess:
    """A `RowChecker` in another process, with the same results; for one thread."""

    def __init__(self) -> None:
        """Starts the process; it imports what it needs while the caller continues."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                # Arrow's default pool returns memory to the system and requests it again every few
                # rows.
                "ARROW_DEFAULT_MEMORY_POOL": "system",
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        self._to = cast(BinaryIO, self._process.stdin)
        self._from = cast(BinaryIO, self._process.stdout)

    def open(self, settings: CheckSettings) -> None:
        """Has the process open the dataset; once, before the first `check`.

        Raises:
            UserError: The process was killed, as happens when memory runs short.
            RuntimeError: It failed.
        """
        self._send(settings)

    def check(self, unit: Unit | Stretch) -> Iterator[Batch]:
        """See `RowChecker.check`; the iterator must be read to its end before the next call.

        Raises:
            UserError: See `RowChecker`; or the process was killed, as happens when memory runs
                short.
            OSError: See `RowChecker`.
            RuntimeError: The process failed.
        """
        self._send(unit)
        while True:
            try:
                answer = pickle.load(self._from)
            except EOFError:
                raise self._ended() from None
            if answer is None:
                return
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: CheckSettings | Unit | Stretch) -> None:
        try:
            pickle.dump(message, self._to)
            self._to.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> Exception:
        status = self._process.wait()
        if status < 0:
            return UserError(
                f"the process that checks the dataset's rows was killed by signal {-status}, as "
                "happens when memory runs short: start the run again with more free memory"
            )
        return RuntimeError(
            f"the process that checks the dataset's rows ended with status {status}: see its "
            "message above"
        )


class CheckProcesses:
    """Check processes, started before the threads that will use them."""

    def __init__(self, count: int) -> None:
        """Starts `count` processes."""
        self._all = [CheckProcess() for _ in range(count)]
        self._idle = list(self._all)

    def take(self, settings: CheckSettings) -> CheckProcess:
        """A process for the calling thread, with the dataset open; a new one if all are taken.

        Raises:
            UserError: The process was killed, as happens when memory runs short.
            RuntimeError: It failed.
        """
        try:
            process = self._idle.pop()
        except IndexError:
            process = CheckProcess()
            self._all.append(process)
        process.open(settings)
        return process

    def close(self) -> None:
        """Ends all of them."""
        for process in self._all:
            process.close()


def _main() -> None:
    # A terminal sends the same signal to the parent, which ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Anything a library prints must not get between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        # Loads the vocabulary while the parent is still getting ready.
        token_count("a")
        settings = pickle.load(sys.stdin.buffer)
        checker: RowChecker | None = None
        while True:
            try:
                unit = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            answer: UserError | OSError | None = None
            try:
                checker = checker or RowChecker(settings)
                for batch in checker.check(unit):
                    pickle.dump(batch, answers, pickle.HIGHEST_PROTOCOL)
            # Any other error ends this process; its traceback goes to the parent's standard error.
            except (UserError, OSError) as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    _main()
