"""Which icons the base weights of tiny learn from; the training itself needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainer.pretraining import icons


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("red-apple", True),
        ("smiling-face-with-horns", True),
        ("medium", False),
        ("thumbs-up-medium-dark-skin-tone", False),
        ("man-detective-dark", False),
        ("flag-france", False),
        ("keycap-3", False),
        ("six-oclock", False),
        ("right-arrow", False),
    ],
)
def test_signs_letters_and_skin_tones_are_left_out(name: str, kept: bool) -> None:
    assert (icons._LEFT_OUT.search(name) is None) == kept


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run npm pack @iconify-json/noto there$"):
        icons.read_icons(str(tmp_path))


def test_an_icon_has_its_own_box_or_the_packages() -> None:
    package = {"width": 128, "height": 64}
    assert 'viewBox="0 0 128 64"' in icons._svg(package, {"body": "<g/>"})
    own = {"body": "<g/>", "left": 2, "top": 3, "width": 20, "height": 10}
    assert 'viewBox="2 3 20 10"' in icons._svg(package, own)


FOLDER = Path(icons.__file__).parents[1] / "base_weights" / "tiny"


def test_the_card_and_the_hashes_are_of_what_is_shipped() -> None:
    listed = (FOLDER / "SHA256SUMS").read_text().split()[1::2]
    assert sorted(listed) == sorted(
        path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.safetensors")
    )
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 25_000_000
    scale = json.loads((FOLDER / "vae" / "config.json").read_text())["scaling_factor"]
    assert scale == 0.18215


def test_every_word_has_a_vector_of_its_own() -> None:
    tensors = load_file(FOLDER / "text_encoder" / "model.safetensors")
    vectors = tensors["embeddings.token_embedding.weight"]
    assert len({vector.tobytes() for vector in vectors}) == len(vectors) == 49408
    # Those of words that captions had, and the others', are as long.
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    assert lengths.min() > 0.1
    assert lengths.max() < 1.0
