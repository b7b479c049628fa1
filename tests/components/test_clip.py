"""CLIP beside transformers' own, on what `tests/data/clip_tiny/make.py` made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.measures.clip import Clip, check_clip, clip_hash, clip_scores
from trainer.weights.errors import WeightsError

FOLDER = Path(__file__).resolve().parent.parent / "data" / "clip_tiny"


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "clip"))


def test_embeddings_are_those_of_transformers():
    clip = Clip(str(FOLDER))
    with np.load(FOLDER / "reference.npz") as reference:
        images = clip.image_embeddings(reference["images"])
        texts = clip.text_embeddings(reference["tokens"])
        np.testing.assert_allclose(images, reference["image_embeddings"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(texts, reference["text_embeddings"], rtol=1e-4, atol=1e-5)


def test_scores_are_cosines_in_percent():
    images = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    texts = np.array([[6.0, 8.0], [0.0, 2.0], [-1.0, 1.0]])
    assert clip_scores(images, texts).tolist() == pytest.approx([100.0, 0.0, 0.0])
    assert clip_scores(images[1:2], np.array([[1.0, 1.0]]))[0] == pytest.approx(70.7107, abs=1e-3)


def test_a_model_is_looked_at_before_anything_starts(copied):
    assert check_clip(str(copied)) == str(copied)
    before = clip_hash(str(copied))
    weights = copied / "model.safetensors"
    config = copied / "config.json"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert clip_hash(str(copied)) != before
    with pytest.raises(WeightsError, match="is damaged"):
        Clip(str(copied))
    weights.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing: give a model as"):
        check_clip(str(copied))
    weights.touch()
    config.write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(WeightsError, match="does not describe a supported CLIP"):
        check_clip(str(copied))


def test_a_text_encoder_alone_is_no_clip(copied):
    shutil.copy(
        FOLDER.parent / "diffusers_tiny" / "text_encoder" / "model.safetensors",
        copied / "model.safetensors",
    )
    with pytest.raises(WeightsError, match=r"has no tensor 'vision_model\.'"):
        Clip(str(copied))
