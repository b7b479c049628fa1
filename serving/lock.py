"""One writer at a time in a serving directory."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator

from storage import filesystem
from storage.user_errors import FailedError

LOCK_NAME = ".lock"
CLAIMS = ".claims"
SETTLE_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0

# By folder: a process need not consult the store about its own threads.
_threads: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

logger = logging.getLogger(__name__)


class LockLostError(FailedError):
    """Another writer assumed that this one is dead, and may be at work."""


class Held:
    """The lock, while it is held."""

    def __init__(self, claim: str = "") -> None:
        self._claim = claim

    def check(self) -> None:
        """Makes sure that the lock is still held, before a step that cannot be undone.

        Raises:
            LockLostError: Another writer took it.
        """
        if self._claim and not filesystem.is_file(self._claim):
            raise LockLostError(
                "another push assumed that this one was dead, because it had made no progress for "
                f"{STALE_SECONDS:.0f} s; nothing was pushed, push again"
            )


@contextlib.contextmanager
def locked(folder: str) -> Iterator[Held]:
    """Waits until no other process writes to `folder`, and keeps others waiting.

    On this machine it is a lock of the operating system, which ends with its holder. Object stores
    have no locks; there, every writer puts a claim beside the claims of others, and the writer
    with the oldest claim is at work. Each keeps rewriting its heartbeat, and waiting writers remove
    a claim whose heartbeat has stopped. This needs a store whose listings are up to date and whose
    clock orders writes, such as Google Cloud Storage.
    """
    if not filesystem.is_remote(folder):
        with _flocked(folder) as held:
            yield held
        return
    with _threads[folder], _claimed(folder) as held:
        yield held


@contextlib.contextmanager
def _flocked(folder: str) -> Iterator[Held]:
    with open(os.path.join(folder, LOCK_NAME), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say_waiting(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Held()


@contextlib.contextmanager
def _claimed(folder: str) -> Iterator[Held]:
    claims = filesystem.join(folder, CLAIMS)
    filesystem.make_folder(claims)
    name = uuid.uuid4().hex
    claim, beat = filesystem.join(claims, name), filesystem.join(claims, f"{name}.alive")
    filesystem.write_bytes(beat, b"0")
    filesystem.write_bytes(claim, b"")
    stop = threading.Event()

    def keep_alive() -> None:
        count = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            count += 1
            # The next beat may succeed; waiters tolerate several missed beats.
            with contextlib.suppress(OSError):
                filesystem.write_bytes(beat, str(count).encode())

    threading.Thread(target=keep_alive, daemon=True).start()
    try:
        # Until any claim with the same time by the store's clock is listed, too.
        time.sleep(SETTLE_SECONDS)
        _wait_for_turn(claims, name)
        yield Held(claim)
    finally:
        stop.set()
        for path in (claim, beat):
            with contextlib.suppress(OSError):
                filesystem.remove_file(path)


def _wait_for_turn(claims: str, name: str) -> None:
    seen: dict[str, tuple[bytes | None, float]] = {}
    waiting = False
    while (first := _oldest(claims)) != name:
        if first is None:
            raise LockLostError(
                "another push assumed that this one was dead while it waited; nothing was pushed, "
                "push again"
            )
        if not waiting:
            _say_waiting(os.path.dirname(claims))
            waiting = True
        beat, now = _read(filesystem.join(claims, f"{first}.alive")), time.monotonic()
        # Watches for a change by this machine's clock: clocks of two machines can differ.
        if first not in seen or seen[first][0] != beat:
            seen[first] = (beat, now)
        elif now - seen[first][1] > STALE_SECONDS:
            logger.warning("Another push makes no progress; it is assumed dead.")
            for path in (f"{first}.alive", first):
                with contextlib.suppress(OSError):
                    filesystem.remove_file(filesystem.join(claims, path))
        time.sleep(min(1.0, HEARTBEAT_SECONDS / 3))


def _oldest(claims: str) -> str | None:
    found = []
    for name in filesystem.list_folder(claims):
        if not name.endswith(".alive"):
            # It may disappear in between.
            with contextlib.suppress(OSError):
                written = filesystem.modification_time(filesystem.join(claims, name))
                found.append((written, name))
    return min(found)[1] if found else None


def _read(path: str) -> bytes | None:
    try:
        return filesystem.read_bytes(path)
    except OSError:
        return None


def _say_waiting(folder: str) -> None:
    logger.info("Waiting for another push to %s to finish.", folder)
