"""What counts as the same data, for the cache and for checkpoints: what is in a folder's files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import filesystem
from storage.filesystem import content_digest

FILES = {"manifest.json": b"{}", "Split-train/a-00000-of-00001.gz": b"\x1f\x8b", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Writes files into a new folder."""
    made = []

    def folder(files: dict[str, bytes], root: str = "") -> str:
        made.append(root)
        path = f"{root or tmp_path}/{len(made)}"
        filesystem.make_folder(path)
        for name, content in files.items():
            filesystem.make_folder(filesystem.parent(f"{path}/{name}"))
            filesystem.write_bytes(f"{path}/{name}", content)
        return path

    return folder


def test_place_time_and_order_do_not_count(folder) -> None:
    first, second = folder(FILES), folder(dict(reversed(FILES.items())))
    os.utime(f"{second}/manifest.json", (0, 0))
    facts = b"".join(
        f"{name}\0{hashlib.sha256(FILES[name]).hexdigest()}\0".encode() for name in sorted(FILES)
    )
    assert content_digest(first) == hashlib.sha256(facts).hexdigest()[:16]
    assert content_digest(second) == content_digest(first)


@pytest.mark.parametrize(
    "change",
    [{"manifest.json": b"{ }"}, {"Split-eval/a-00000-of-00001.gz": b""}, {"empty": b"\0"}],
)
def test_every_file_counts(folder, change: dict[str, bytes]) -> None:
    assert content_digest(folder({**FILES, **change})) != content_digest(folder(FILES))


def test_names_count(folder) -> None:
    blessed, refused = folder({"BLESSED": b""}), folder({"NOT_BLESSED": b""})
    assert content_digest(blessed) != content_digest(refused) != content_digest(folder({}))


def test_a_folder_is_the_same_wherever_it_lies(folder) -> None:
    """`ram://` is opened through the same interface as `gs://`."""
    assert content_digest(folder(FILES, root="ram://digests")) == content_digest(folder(FILES))


def test_what_is_not_there_has_no_content(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        content_digest(str(missing))
    missing.mkdir()
    assert content_digest(str(missing)) == hashlib.sha256().hexdigest()[:16]
