"""How a measured process tells its result. Imports the standard library alone."""

from __future__ import annotations

import glob
import json
import resource
import threading


class ChildrenMemory:
    """Watches the peak memory of this process's children while it is entered.

    `RUSAGE_CHILDREN` would not do: a child's peak there starts with its parent's.
    """

    def __enter__(self) -> ChildrenMemory:
        self._peaks_kb: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """The sum of the children's peaks, what they share counted for each."""
        return sum(self._peaks_kb.values()) / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            for path in glob.glob("/proc/self/task/*/children"):
                for child in _read(path).split():
                    status = _read(f"/proc/{child}/status")
                    if "VmHWM:" in status:
                        peak = int(status.split("VmHWM:")[1].split()[0])
                        self._peaks_kb[child] = max(peak, self._peaks_kb.get(child, 0))


def _read(path: str) -> str:
    """A file of /proc; nothing where its process has ended."""
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ""


def print_result(pictures: int, seconds: float, children_mb: float = 0.0, **more: float) -> None:
    """Prints pictures, seconds and peak memory (MB), children's included, as a line of JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + children_mb
    print(json.dumps({"pictures": pictures, "seconds": seconds, "peak_mb": peak, **more}))
