"""`import trainer` in a notebook: what it gives, and that the page's example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

import trainer

ROOT = Path(__file__).resolve().parents[2]


def example() -> str:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import itertools\n.*?)```", text, re.DOTALL)
    return code


def test_every_name_that_the_example_uses_is_there() -> None:
    used = set(re.findall(r"trainer\.(\w+)", example()))
    assert used <= set(trainer.__all__) <= set(dir(trainer))
    for name in trainer.__all__:
        assert getattr(trainer, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        trainer.train  # noqa: B018


def test_importing_it_imports_nothing() -> None:
    code = "import sys, trainer; print({'keras', 'tensorflow', 'numpy', 'tfx'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    code = example()
    for long, short in {"steps=50": "steps=2", "batch_size=16": "batch_size=2"}.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "docs/training.md", "exec"), {})
    model = tf.saved_model.load("runs/notebook/model/decoder")
    image = model.png(tf.zeros((1, 16, 16, 4)))["image"][0]
    assert tf.io.decode_png(image).shape == (128, 128, 3)
