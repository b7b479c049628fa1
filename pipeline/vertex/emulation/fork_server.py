"""Runs modules as `python -m` does, in forked processes that need not import TFX again.

A program: its arguments are modules to import; every line of its input is a JSON object with `argv`
(the module and its arguments), `log` (file for both outputs) and `environment` (variables to add).
It answers with a line, the process's exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Sequence


def serve(modules: Sequence[str]) -> None:
    """Imports `modules`, says `ready`, and runs what it is asked to."""
    # What modules print when they are imported is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(module)
    print("ready", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(request["argv"], request["log"], request["environment"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)


def _run(argv: Sequence[str], log: str, environment: dict[str, str]) -> int:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.environ.update(environment)
    sys.argv = list(argv)
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1:])
