"""Which stack .ci/setup chooses and what it says, and that the lock files fit setup.py."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CURRENT_LOCK, OLD_LOCK = "requirements.lock", "requirements-old-stack.lock"
LOCKED = re.compile(r"^([a-z0-9][\w.-]*)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)

# Answers what .ci/setup asks an interpreter, and makes a .venv that answers the same.
PYTHON = """#!/bin/sh
case "$*" in
*abiflags*) echo {version}{abiflags} ;;
*version_info*) echo {version} ;;
*ensurepip*) exit {without_venv} ;;
*base_prefix*) echo {version} ;;
*realpath*) echo {path} ;;
*Python.h*) exit {without_headers} ;;
--version) echo Python {version}.9 ;;
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


class Machine:
    """A checkout on a machine that has the programs that a test gives it."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.programs = folder / "checkout", folder / "bin"
        (self.checkout / ".ci").mkdir(parents=True)
        self.programs.mkdir()
        shutil.copy(ROOT / ".ci" / "setup", self.checkout / ".ci")
        for lock in (CURRENT_LOCK, OLD_LOCK):
            (self.checkout / lock).write_text(f"one=={len(lock)}\n")
        for name in ("sh", "sed", "grep", "rm", "cp", "cmp", "mkdir", "date", "dirname", "cat"):
            path = shutil.which(name)
            assert path is not None
            (self.programs / name).symlink_to(path)
        self.has("uname", "echo x86_64")
        self.has("uv", "exit 0")
        self.has("g++", "")

    def has(self, name: str, script: str) -> Path:
        path = self.programs / name
        path.unlink(missing_ok=True)
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def has_glibc(self, version: str) -> None:
        self.has("getconf", f"echo glibc {version}")

    def has_python(
        self, version: str, *, venv: bool = True, headers: bool = True, abiflags: str = ""
    ) -> Path:
        answers = {
            "without_venv": int(not venv),
            "without_headers": int(not headers),
            "abiflags": abiflags,
        }
        path = self.programs / f"python{version}"
        return self.has(path.name, PYTHON.format(version=version, path=path, **answers))

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        home = {"PATH": str(self.programs), "HOME": str(self.checkout)}
        return subprocess.run(
            ["/bin/sh", ".ci/setup"],
            cwd=self.checkout,
            env=home | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stack(self) -> str:
        stamp = (self.checkout / ".venv" / ".installed").read_text()
        [lock] = [x for x in (CURRENT_LOCK, OLD_LOCK) if (self.checkout / x).read_text() == stamp]
        return lock


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("glibc", "pythons", "said", "lock"),
    [
        ("2.41", ["3.10", "3.12", "3.13"], "TFX 1.21 on Python 3.13.9", CURRENT_LOCK),
        ("2.39", ["3.11", "3.12"], "TFX 1.21 on Python 3.12.9", CURRENT_LOCK),
        ("2.39", ["3.11"], "because glibc here is 2.39", CURRENT_LOCK),
        ("2.41", ["3.10", "3.14"], "because there is no Python 3.11 to 3.13", OLD_LOCK),
        ("2.36", ["3.10", "3.13"], "TFX 1.16 on Python 3.10.9", OLD_LOCK),
        ("2.36", ["3.10"], "TFX 1.21 needs glibc 2.39, and here it is 2.36", OLD_LOCK),
    ],
)
def test_the_stack_is_chosen_and_said(
    machine: Machine, glibc: str, pythons: list[str], said: str, lock: str
) -> None:
    machine.has_glibc(glibc)
    for version in pythons:
        machine.has_python(version)
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert said in done.stdout.splitlines()[0]
    assert machine.stack() == lock
    assert machine.set_up().stdout == ""


def test_python_overrides_and_stays(machine: Machine) -> None:
    machine.has_glibc("2.41")
    machine.has_python("3.13")
    old = machine.has_python("3.10")
    assert "TFX 1.16 on Python 3.10.9" in machine.set_up(PYTHON=str(old)).stdout
    # It is not made anew for who does not repeat the override.
    assert machine.set_up().stdout == ""
    assert machine.stack() == OLD_LOCK
    assert "TFX 1.21" in machine.set_up(PYTHON=str(machine.programs / "python3.13")).stdout
    assert machine.stack() == CURRENT_LOCK


def test_a_changed_lock_file_installs_anew(machine: Machine) -> None:
    machine.has_glibc("2.41")
    machine.has_python("3.13")
    machine.set_up()
    (machine.checkout / CURRENT_LOCK).write_text("one==1000\n")
    assert "TFX 1.21" in machine.set_up().stdout
    # The Python that is named may be the one of the .venv that goes.
    (machine.checkout / CURRENT_LOCK).write_text("one==1001\n")
    assert "TFX 1.21" in machine.set_up(PYTHON=".venv/bin/python").stdout
    assert machine.stack() == CURRENT_LOCK


@pytest.mark.parametrize(
    ("glibc", "python", "said"),
    [
        ("2.41", "3.9", "is Python 3.9; it must be 3.11, 3.12 or 3.13 (TFX 1.21), or 3.10"),
        ("2.41", "3.14", "is Python 3.14; it must be"),
        ("2.36", "3.12", "needs glibc 2.39 or newer; here it is 2.36: give a Python 3.10"),
    ],
)
def test_an_impossible_override_is_refused(
    machine: Machine, glibc: str, python: str, said: str
) -> None:
    machine.has_glibc(glibc)
    path = machine.has_python(python)
    done = machine.set_up(PYTHON=str(path))
    assert done.returncode == 1
    assert said in done.stderr
    assert not (machine.checkout / ".venv").exists()


def test_what_is_missing_is_named(machine: Machine) -> None:
    (machine.programs / "uv").unlink()
    machine.has_glibc("2.41")
    machine.has_python("3.13", venv=False)
    done = machine.set_up()
    assert done.returncode == 1
    assert (
        "python3.13 is here, but lacks the modules venv and ensurepip: apt install python3.13-venv"
        in (done.stderr)
    )
    machine.has_glibc("2.36")
    done = machine.set_up()
    assert done.returncode == 1
    assert "needs Python 3.10 here" in done.stderr


@pytest.mark.parametrize(
    ("ldd", "lock"),
    [
        ("ldd (Debian GLIBC 2.41-12) 2.41", CURRENT_LOCK),
        ("ldd (Ubuntu GLIBC 2.39-0ubuntu8.4) 2.39", CURRENT_LOCK),
        ("ldd (GNU libc) 2.34", OLD_LOCK),
    ],
)
def test_ldd_knows_glibc_where_getconf_does_not(machine: Machine, ldd: str, lock: str) -> None:
    machine.has("getconf", "echo no such variable >&2; exit 1")
    machine.has("ldd", f"echo '{ldd}'; echo Copyright 2.40")
    machine.has_python("3.10")
    machine.has_python("3.13")
    machine.set_up()
    assert machine.stack() == lock


def test_a_machine_without_packages_is_refused(machine: Machine) -> None:
    machine.has_python("3.10")
    for ldd in ("echo 'musl libc (x86_64)' >&2; echo 'Version 1.2.4' >&2; exit 1", "exit 127"):
        machine.has("ldd", ldd)
        done = machine.set_up()
        assert done.returncode == 1
        assert "TFX needs glibc" in done.stderr
    machine.has_glibc("2.41")
    machine.has("uname", "echo aarch64")
    done = machine.set_up()
    assert done.returncode == 1
    assert "only has packages for x86_64; this machine is aarch64" in done.stderr
    assert not (machine.checkout / ".venv").exists()


def test_a_free_threaded_python_is_none_of_ours(machine: Machine) -> None:
    machine.has_glibc("2.41")
    machine.has_python("3.13", abiflags="t")
    machine.has_python("3.12")
    assert "TFX 1.21 on Python 3.12.9" in machine.set_up().stdout


def test_a_python_of_uv_is_not_that_of_the_venv_that_goes(machine: Machine) -> None:
    machine.has_glibc("2.41")
    of_uv = machine.has_python("3.13").rename(machine.checkout / "python-of-uv")
    # As uv does: the one of .venv is the first found, unless it is told otherwise.
    machine.has(
        "uv",
        f"""case "$*" in
        "python find --system --managed-python 3.13") echo {of_uv} ;;
        "python find"*) echo .venv/bin/python ;;
        esac""",
    )
    assert machine.set_up().returncode == 0
    (machine.checkout / CURRENT_LOCK).write_text("one==1000\n")
    assert machine.set_up().returncode == 0
    assert machine.stack() == CURRENT_LOCK


@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_the_old_stack_needs_a_compiler_and_the_current_one_does_not(
    machine: Machine, missing: str
) -> None:
    if missing == "compiler":
        (machine.programs / "g++").unlink()
    machine.has_glibc("2.36")
    machine.has_python("3.10", headers=missing != "headers")
    done = machine.set_up()
    assert done.returncode == 1
    assert "apt install g++ python3.10-dev" in done.stderr
    assert not (machine.checkout / ".venv").exists()
    machine.has_glibc("2.41")
    machine.has_python("3.13", headers=False)
    assert machine.set_up().returncode == 0


def test_scripts_have_no_fault() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [".ci/setup", ".ci/run", ".ci/debian13"]
    done = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("lock", "python"),
    [(CURRENT_LOCK, "3.11"), (CURRENT_LOCK, "3.12"), (CURRENT_LOCK, "3.13"), (OLD_LOCK, "3.10")],
)
def test_lock_files_fit_the_ranges(lock: str, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: said.update(arguments))
    monkeypatch.chdir(ROOT)
    exec(
        compile((ROOT / "setup.py").read_text(), "setup.py", "exec"),
        {"__name__": "setup", "__file__": str(ROOT / "setup.py")},
    )
    extras = (said["extras_require"][name] for name in ("vertex", "mysql", "heic", "dev"))
    ranges = [*said["install_requires"], *itertools.chain.from_iterable(extras)]
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.5",
    }
    versions = {
        name: version
        for name, version, marker in LOCKED.findall((ROOT / lock).read_text())
        if not marker or Requirement(f"x; {marker}").marker.evaluate(environment)
    }
    wanted = [Requirement(text) for text in ranges]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate(environment)]
    assert len(wanted) > 40
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert Version(versions[name]) in requirement.specifier, name


def test_no_lock_file_names_a_registry() -> None:
    locks = [ROOT / CURRENT_LOCK, ROOT / OLD_LOCK, ROOT / "pipeline" / "vertex" / "image.lock"]
    for lock in [*locks, ROOT / ".ci" / "uv.txt"]:
        assert "://" not in lock.read_text()
        assert "--index" not in lock.read_text()


def made(*arguments: str) -> str:
    """What make says; nothing of the `make test` that this may run in."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_help_says_something_of_every_target() -> None:
    said = made("--silent", "help")
    texts = dict(line.split(maxsplit=1) for line in said.splitlines())
    [targets] = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text())
    assert set(texts) == set(targets.split())
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("run", "runner_local.py --output 'runs/my own'"),
        ("lineage", "pipeline.lineage --store 'runs/my own' serve"),
        ("playground", "serving.playground --serving-dir 'runs/my own/serving_model'"),
    ],
)
def test_one_name_for_a_run_s_folder(target: str, expected: str) -> None:
    said = made("--dry-run", "--old-file=setup", target, "RUN=runs/my own", "ARGS=")
    assert shlex.split(expected) == shlex.split(said)[-len(shlex.split(expected)) :]


def test_what_one_process_of_the_tests_has_compiled_is_there_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text("print(__cached__)")
    command = [sys.executable, "-c", "import some"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_file()
