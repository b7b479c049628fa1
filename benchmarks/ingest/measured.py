"""How a measured process reports its result. Imports only the standard library."""

from __future__ import annotations

import glob
import json
import resource
import threading


class ChildrenMemory:
    """Watches the peak memory of this process's children within a `with` block.

    `RUSAGE_CHILDREN` would not do: there, a child's peak starts with its parent's.
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
        """The sum of the children's peaks; shared memory counts for each."""
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
    """A file of /proc; empty if its process has ended."""
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ""


def print_result(pictures: int, seconds: float, children_mb: float = 0.0, **more: float) -> None:
    """Prints pictures, seconds and peak memory (MB, with children's) as a line of JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + children_mb
    print(json.dumps({"pictures": pictures, "seconds": seconds, "peak_mb": peak, **more}))
