"""How a measured process tells its result. Imports the standard library alone."""

from __future__ import annotations

import json
import resource


def print_result(pictures: int, seconds: float) -> None:
    """Prints pictures, seconds and the process's peak memory (MB) as one line of JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pictures": pictures, "seconds": seconds, "peak_mb": peak}))
