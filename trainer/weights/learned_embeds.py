"""The file with a word's vectors, as diffusers and A1111 read and write it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from storage import filesystem
from storage.errors import one_line
from trainer.model_spec import LEARNED_EMBEDS_NAME, save_file
from trainer.text.new_word import NewWord
from trainer.weights.errors import WeightsError


def write_learned_embeds(
    folder: str, word: NewWord, vectors: np.ndarray, header: Mapping[str, str]
) -> None:
    """Writes a word's vectors.

    One tensor, called as the word is, float32 [K, width]: diffusers' `load_textual_inversion`
    makes of K rows the tokens `<word>`, `<word>_1` and so on, and A1111 goes by the file's name.

    Args:
        folder: Any that TensorFlow or fsspec opens.
        word: The word.
        vectors: [K, width].
        header: What the file says of itself, beside ModelSpec's hash.
    """
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, LEARNED_EMBEDS_NAME)
        save_file({word.token: np.ascontiguousarray(vectors, np.float32)}, local, header)
        filesystem.write_bytes(filesystem.join(folder, LEARNED_EMBEDS_NAME), local.read_bytes())


def read_learned_embeds(path: str, width: int, vectors: int) -> np.ndarray:
    """Reads a word's vectors, which another tool may have trained under another name.

    Args:
        path: A `.safetensors` with one tensor, [K, width], or [width] of one vector.
        width: Of the text encoder that they are for.
        vectors: How many there must be.

    Returns:
        float32 [vectors, width].

    Raises:
        WeightsError: It is missing, damaged, of another kind, or for another text encoder.
    """
    if os.path.splitext(path)[1] != ".safetensors":
        raise WeightsError(
            f"{path} is no .safetensors file: a pickled one (.pt, .bin) is not opened, since it "
            "can run whatever it likes; save it as safetensors"
        )
    try:
        tensors = safetensors.numpy.load(filesystem.read_bytes(path))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is missing or damaged: {one_line(error)}") from None
    if len(tensors) != 1:
        raise WeightsError(
            f"{path} has {len(tensors)} tensors, and a word's vectors are one: give "
            f"{LEARNED_EMBEDS_NAME} as diffusers or this pipeline writes it, of Stable Diffusion "
            "1.x or 2.x"
        )
    [found] = tensors.values()
    rows = np.atleast_2d(found).astype(np.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise WeightsError(
            f"{path} has vectors of the shape {list(found.shape)}, and the text encoder's are "
            f"{width} wide: they were learned for another model"
        )
    if len(rows) != vectors:
        raise WeightsError(f"{path} has {len(rows)} vectors: set word.vectors to {len(rows)}")
    if not np.isfinite(rows).all():
        raise WeightsError(f"{path} has vectors that are no finite numbers")
    return rows
