"""Two releases of a network of a few thousand parameters, exported and published for real."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[int, Path]:
    """The Trainer's `Format-Serving`, of two models that differ in all three networks.

    Made once for all processes of the tests; not to be changed.
    """
    import small_releases

    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent
    folders = {number: root / "exported" / str(number) for number in (1, 2)}
    with (root / "exported.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := root / "exported" / "done").exists():
            small_releases.export(folders)
            done.touch()
    return folders


@pytest.fixture(scope="session")
def publish(exported: dict[int, Path]) -> Callable[..., int]:
    """Publishes one of the two into a serving directory, as the pusher does; gives its version."""
    import small_releases

    def publish(root: Path | str, number: int, batch_size: int = 1) -> int:
        return small_releases.publish(root, number, exported[number], batch_size)

    return publish


@pytest.fixture(scope="session")
def released(publish: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serving directory with release 1; not to be changed."""
    root = tmp_path_factory.mktemp("released") / "serving_model"
    publish(root, 1)
    return root


@pytest.fixture
def serving_root(released: Path, tmp_path: Path) -> Path:
    """Release 1 in a serving directory of the test's own."""
    root = Path(shutil.copytree(released, tmp_path / "serving_model"))
    config = root / "models.config"
    config.write_text(config.read_text().replace(str(released), str(root)))
    return root
