"""Settings that every test process needs before TensorFlow or TFX is imported."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# TFX's imports would switch Keras to version 2 where this is unset.
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the runners set it: which arithmetic is used must not depend on the machine.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import pytest
from zygote import Zygote

# Begun first, so that no process is left alone with one of them at the end.
LONGEST = ("test_end_to_end.py", "test_blessing.py", "test_evaluator.py")

# Twice what the fast tests take. What runs away, as one evaluation in many has done, then fails
# where it does and shows its stack; otherwise the kernel ends it, or another process, without one.
MEMORY_BYTES = 16 << 30


def pytest_configure(config: pytest.Config) -> None:
    _keep_bytecode(config)
    if config.getoption("markexpr") == "not slow":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))


def _keep_bytecode(config: pytest.Config) -> None:
    """Has bytecode kept in pytest's cache where it may not be written beside the sources.

    That is so in many containers, whose packages may come without any. A process that imports
    TensorFlow and TFX would compile eight thousand modules, for half a minute, and the tests start
    dozens of such processes.
    """
    # `-p no:cacheprovider` leaves none.
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is not None and os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        place = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(cache.mkdir("bytecode")))
        sys.dont_write_bytecode, sys.pycache_prefix = False, place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs the command line with `small_pipeline.py` in the place of the real pipeline."""
    modules = {"pipeline.local_runner": None, "pipeline.pipeline": "small_pipeline"}
    here = Path(__file__).resolve().parent
    zygote = Zygote(tmp_path_factory.mktemp("zygote"), modules, here / "pipeline")
    yield zygote
    zygote.close()
