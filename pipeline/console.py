"""What the user sees of a run, and the log that holds the rest.

While a console is open, file descriptors 1 and 2 lead into the log, so that nothing that native
code, child processes or libraries write reaches the terminal. The terminal itself is `sys.stdout`:
our packages report progress through it (a progress bar) or through their own loggers at INFO, and
do not depend on this module. A record is shown if it is

* from one of our packages, at INFO and above; or
* from anyone else, at ERROR and above.

With `verbose` everything is shown, and still logged.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from storage.addresses import redacted

OUR_PACKAGES = ("trainer", "components", "pipeline", "serving", "storage", "data")

# At DEBUG these log a line or more per picture, glyph or bundle; Beam logs whole stacks.
_CHATTY = ("apache_beam", "PIL", "matplotlib", "fsspec", "h5py", "filelock", "asyncio")

# The runner reports a failing component itself, and in full.
_REPORTED_BY_RUNNER = (
    os.path.join("tfx", "orchestration"),
    os.path.join("apache_beam", "runners"),
)

_QUIET_ENVIRONMENT = {
    # When it is imported, TensorFlow logs missing CUDA libraries at level E.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
}


def quiet_environment(verbose: bool) -> None:
    """Sets environment variables that TensorFlow and TFX read on import; call it before that."""
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    # By default TensorFlow uses oneDNN only on processors with instructions for neural networks; on
    # others, too, it makes a training step a third faster.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if not verbose:
        for name, value in _QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


class Console:
    """The user's terminal (or the file or pipe in its place) and the run's log."""

    def __init__(self, stream: TextIO, log_path: Path) -> None:
        self.log_path = log_path
        self._stream = stream
        self._log = logging.getLogger("pipeline.console.transcript")

    def print(self, text: str = "") -> None:
        """Shows `text` to the user and logs it, without secrets in addresses."""
        text = redacted(text)
        self._stream.write(f"{text}\n")
        self._stream.flush()
        for line in text.splitlines():
            self._log.info(line)


class _Unfailing(io.TextIOWrapper):
    """A stream that never fails: what a full disk or a closed terminal does not take is dropped."""

    def __init__(
        self,
        binary: io.RawIOBase,
        on_first_failure: Callable[[OSError], object] = lambda error: None,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
    ) -> None:
        """Writes to `binary`, unbuffered.

        Args:
            binary: Unbuffered; a buffer would keep what cannot be written and retry for ever.
            on_first_failure: Called with the error the first time something is dropped.
            encoding: The encoding of the text.
            errors: What to do with characters that the encoding lacks.
        """
        super().__init__(
            cast(BinaryIO, binary), encoding=encoding, errors=errors, write_through=True
        )
        self._on_first_failure = on_first_failure
        self._failed = False

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        try:
            return super().write(text)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._on_first_failure(error)
            return len(text)


class _OursOrErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        package = record.name.partition(".")[0]
        if record.name == "pipeline.console.transcript":
            return False
        if package in OUR_PACKAGES:
            return record.levelno >= logging.INFO
        return record.levelno >= logging.ERROR and not any(
            place in record.pathname for place in _REPORTED_BY_RUNNER
        )


class _NotTranscript(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "pipeline.console.transcript"


class _DiscreetFormatter(logging.Formatter):
    """Leaves out secrets in addresses; stores redirect to signed ones, which libraries log."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _PlainFormatter(_DiscreetFormatter):
    """Our own progress as it is; warnings and errors labelled, others' also with their source."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return f"  {text}"
        ours = record.name.partition(".")[0] in OUR_PACKAGES
        source = "" if ours else f" [{record.name}]"
        return f"  {record.levelname.lower()}{source}: {text}"


@contextlib.contextmanager
def open_console(log_path: Path, verbose: bool = False) -> Iterator[Console]:
    """Redirects everything but our progress into `log_path` until the context ends.

    Args:
        log_path: File that receives everything; created with its folder.
        verbose: Show everything on the terminal, too.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stdout, stderr = sys.stdout, sys.stderr
        stdout.flush()
        stderr.flush()
        terminal = _own_stream(1, stdout, stack)
        terminal_errors = _own_stream(2, stderr, stack)
        log_file = stack.enter_context(
            _Unfailing(
                io.FileIO(log_path, "a"),
                lambda error: terminal.write(
                    f"  warning: the log {log_path} cannot be written ({error.strerror}); messages "
                    "from here on are not kept\n"
                ),
            )
        )
        saved_fds = [(fd, os.dup(fd)) for fd in (1, 2)]
        sink = _tee(log_path, saved_fds[1][1], stack) if verbose else os.dup(log_file.fileno())
        for fd, _ in saved_fds:
            os.dup2(sink, fd)
        os.close(sink)
        native = stack.enter_context(_Unfailing(io.FileIO(2, "w", closefd=False)))
        # Otherwise a crash in native code would end the run without a message to the user.
        had_faulthandler = faulthandler.is_enabled()
        with contextlib.suppress(io.UnsupportedOperation, ValueError):
            faulthandler.enable(file=terminal_errors)
        sys.stdout, sys.stderr = terminal, native
        restore_logging = _configure_logging(terminal, log_file, verbose)
        try:
            yield Console(terminal, log_path)
        finally:
            restore_logging()
            for stream in (terminal, native):
                with contextlib.suppress(ValueError, OSError):
                    stream.flush()
            faulthandler.disable()
            if had_faulthandler:
                with contextlib.suppress(io.UnsupportedOperation, ValueError, RuntimeError):
                    faulthandler.enable(file=stderr)
            sys.stdout, sys.stderr = stdout, stderr
            for fd, saved in saved_fds:
                os.dup2(saved, fd)
                os.close(saved)


def settle_logging() -> None:
    """Undoes what importing libraries did to logging; call it after importing them.

    TensorFlow, absl and Beam add their own handlers, which would bypass the console's rules.
    """
    root = logging.getLogger()
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] not in OUR_PACKAGES:
            logger.handlers.clear()
            logger.propagate = True
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    for handler in list(root.handlers):
        if not getattr(handler, "of_console", False):
            root.removeHandler(handler)


def _own_stream(fd: int, stream: TextIO, stack: contextlib.ExitStack) -> TextIO:
    """A stream that still leads where `stream` does after `fd` is redirected."""
    try:
        on_fd = stream.fileno() == fd
    except (OSError, ValueError, AttributeError):
        on_fd = False
    if not on_fd:
        return stream
    return stack.enter_context(
        _Unfailing(io.FileIO(os.dup(fd), "w"), encoding=stream.encoding, errors="replace")
    )


def _tee(log_path: Path, terminal_fd: int, stack: contextlib.ExitStack) -> int:
    """A file descriptor whose input goes to the log and to the terminal.

    This takes a process, not a thread: native code may write while it holds the interpreter's lock,
    and would then wait for ever on a full pipe.
    """
    read, write = os.pipe()
    process = subprocess.Popen(
        ["tee", "-a", "-i", str(log_path)], stdin=read, stdout=terminal_fd, stderr=terminal_fd
    )
    os.close(read)

    def finish() -> None:
        # A child process that outlives us may hold the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)

    stack.callback(finish)
    return write


def _configure_logging(terminal: TextIO, log_file: TextIO, verbose: bool) -> Callable[[], None]:
    root = logging.getLogger()
    level_before, handlers_before = root.level, list(root.handlers)
    to_file = logging.StreamHandler(log_file)
    to_file.setFormatter(
        _DiscreetFormatter("%(asctime)s %(levelname)s %(name)s %(filename)s:%(lineno)d %(message)s")
    )
    to_terminal = logging.StreamHandler(terminal)
    to_terminal.setFormatter(_PlainFormatter("%(message)s"))
    to_terminal.addFilter(_NotTranscript() if verbose else _OursOrErrors())
    for handler in (to_file, to_terminal):
        handler.of_console = True  # type: ignore[attr-defined]
    root.handlers[:] = [to_file, to_terminal]
    root.setLevel(logging.DEBUG)
    chatty = [(logging.getLogger(name), logging.getLogger(name).level) for name in _CHATTY]
    for logger, _ in chatty:
        logger.setLevel(logging.INFO)
    logging.captureWarnings(True)

    def restore() -> None:
        logging.captureWarnings(False)
        root.setLevel(level_before)
        root.handlers[:] = handlers_before
        for logger, level in chatty:
            logger.setLevel(level)

    return restore
