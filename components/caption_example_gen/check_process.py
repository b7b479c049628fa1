"""`RowChecker` in a process of its own: Beam's threads cannot judge rows side by side.

Decoding leaves Python's lock for a third of the time a row takes. The process is this module, run
by the interpreter: unlike those of `multiprocessing` it does not import the program that started
it, which has TensorFlow, TFX and Beam in it.
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
    """`RowChecker` with the same results, elsewhere; for one thread."""

    def __init__(self) -> None:
        """Starts the process, which imports what it needs while the caller goes on."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                # Arrow's own choice returns memory to the system every few rows, and asks again.
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
            UserError: The process was ended, as it is where memory is short.
            RuntimeError: It ended by a fault of its own.
        """
        self._send(settings)

    def check(self, unit: Unit | Stretch) -> Iterator[Batch]:
        """See `RowChecker.check`; the iterator must be read to its end before the next call.

        Raises:
            UserError: See `RowChecker`; or the process was ended, as it is where memory is short.
            OSError: See `RowChecker`.
            RuntimeError: The process ended by a fault of its own.
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
                f"the process that judges the dataset's rows was ended by signal {-status}, as "
                "it is where memory is short: start the run again where more is free"
            )
        return RuntimeError(
            f"the process that judges the dataset's rows ended with status {status}: see its "
            "message above"
        )


class CheckProcesses:
    """Processes that are started before the threads that will use them."""

    def __init__(self, count: int) -> None:
        """Starts `count` processes."""
        self._all = [CheckProcess() for _ in range(count)]
        self._idle = list(self._all)

    def take(self, settings: CheckSettings) -> CheckProcess:
        """A process for the calling thread, with the dataset opened; a new one where all are taken.

        Raises:
            UserError: The process was ended, as it is where memory is short.
            RuntimeError: It ended by a fault of its own.
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
    # The parent, which gets the same signal from a terminal, ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Whatever a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        # Loads the vocabulary while the parent is not ready yet.
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
            # Any other error ends this process and is written where the parent's are.
            except (UserError, OSError) as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    _main()
