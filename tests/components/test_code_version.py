"""A step's code: what its executor imports, read out of the source."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components import code_version as subject
from components.code_version import code_version, imported_modules

REPO_ROOT = Path(__file__).resolve().parents[2]
EXECUTORS = sorted(
    f"components.{path.parent.name}.executor"
    for path in (REPO_ROOT / "components").glob("*/executor.py")
)
TRAINER = ("trainer.run_fn", "components.diffusion_trainer.executor")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a file of a project of its own."""
    monkeypatch.setattr(subject, "_ROOT", tmp_path)

    def write(name: str, content: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    write("work/__init__.py", "")
    write("work/executor.py", "import os\nfrom work import rooms\nfrom .helper import help\n")
    write("work/helper.py", "def help():\n    from other.deep import late\n")
    write("work/rooms.py", "x = 1\n")
    write("work/unused.py", "x = 1\n")
    write("work/page.html", "<p>")
    write("work/weights.safetensors", "0")
    write("work/notes.md", "a")
    write("other/__init__.py", "")
    write("other/deep/__init__.py", "")
    write("other/deep/late.py", "import typing\nif typing.TYPE_CHECKING:\n    import work.unused\n")
    return write


def test_imports_are_followed_also_into_functions_but_not_those_for_type_checkers(write) -> None:
    assert imported_modules("work.executor") == {
        "work",
        "work.executor",
        "work.helper",
        "work.rooms",
        "other",
        "other.deep",
        "other.deep.late",
    }


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("work/executor.py", True),
        ("work/__init__.py", True),
        ("work/rooms.py", True),
        ("work/page.html", True),
        ("work/weights.safetensors", True),
        ("other/deep/late.py", True),
        ("other/deep/table.yaml", True),
        ("work/unused.py", False),
        ("work/notes.md", False),
        ("other/deep/more.py", False),
    ],
)
def test_what_is_run_counts(write, name: str, counts: bool) -> None:
    before = code_version("work.executor")
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert code_version("work.executor") == before
    write(name, "# another comment\n")
    assert (code_version("work.executor") != before) is counts


def test_the_place_and_the_order_of_names_do_not_matter(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = code_version("work.executor", "work.unused")
    assert version == code_version("work.unused", "work.executor") != code_version("work.executor")
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    monkeypatch.setattr(subject, "_ROOT", tmp_path / "elsewhere")
    assert code_version("work.executor", "work.unused") == version


def test_an_unknown_name(write) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"work\.nothing"):
        code_version("work.nothing")


def test_what_cannot_change_the_output_is_there_and_left_out() -> None:
    for name in subject._WITHOUT_EFFECT:
        assert subject._source(name), name
    assert not subject._WITHOUT_EFFECT & imported_modules(*EXECUTORS, *TRAINER)


def test_a_comment_elsewhere_runs_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("components", "data", "serving", "storage", "trainer"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "creatures")
        shutil.copytree(REPO_ROOT / package, tmp_path / package, ignore=ignored)
    monkeypatch.setattr(subject, "_ROOT", tmp_path)
    steps = {name: (name,) for name in EXECUTORS} | {"Trainer": TRAINER}

    def changed_by(name: str) -> set[str]:
        before = {step: code_version(*names) for step, names in steps.items()}
        with (tmp_path / name).open("a") as f:
            f.write("# a comment\n")
        return {step for step, names in steps.items() if code_version(*names) != before[step]}

    assert changed_by("trainer/diffusers_export.py") == set()
    assert changed_by("serving/playground.py") == set()
    assert changed_by("trainer/training/fine_tuner.py") == {"Trainer"}
    assert changed_by("components/evaluation_report/template.html") == {
        "components.evaluation_report.executor"
    }
    # Imported in a function of LatentGen's executor.
    assert "components.latent_gen.executor" in changed_by("storage/images.py")
    assert "Trainer" not in changed_by("storage/images.py")


_WATCH = """
import importlib, json, os, sys
# What takes seconds and is not ours, once for all.
import tensorflow, tfx.v1, tensorflow_model_analysis, keras_cv
for names in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if not os.fork():
        for name in names:
            importlib.import_module(name)
        print(json.dumps([names, sorted(sys.modules)]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, names
"""


@pytest.mark.slow
def test_no_module_that_is_imported_is_missing() -> None:
    steps = [*([name] for name in EXECUTORS), list(TRAINER)]
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, json.dumps(steps)],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    watched = [json.loads(line) for line in done.stdout.splitlines()]
    assert [names for names, _ in watched] == steps
    for names, modules in watched:
        ours = {name for name in modules if subject._source(name)}
        assert ours - subject._WITHOUT_EFFECT <= imported_modules(*names), names
