"""The file with the vectors of a word, as diffusers and A1111 read and write it."""

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
    """Writes the vectors of a word.

    The file has one tensor, named after the word, float32 [K, width]. From K rows, diffusers'
    `load_textual_inversion` makes the tokens `<word>`, `<word>_1` and so on; A1111 uses the name of
    the file.

    Args:
        folder: Any folder that TensorFlow or fsspec can open.
        word: The word.
        vectors: [K, width].
        header: The keys of the header, apart from ModelSpec's hash.
    """
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, LEARNED_EMBEDS_NAME)
        save_file({word.token: np.ascontiguousarray(vectors, np.float32)}, local, header)
        filesystem.write_bytes(filesystem.join(folder, LEARNED_EMBEDS_NAME), local.read_bytes())


def read_learned_embeds(path: str, width: int, vectors: int) -> np.ndarray:
    """Reads the vectors of a word, which another tool may have trained under another name.

    Args:
        path: A `.safetensors` file with one tensor, [K, width], or [width] for one vector.
        width: Width of the text encoder that they are for.
        vectors: Required number of vectors.

    Returns:
        float32 [vectors, width].

    Raises:
        WeightsError: The file is missing, damaged, of another kind, or for another text encoder.
    """
    if os.path.splitext(path)[1] != ".safetensors":
        raise WeightsError(
            f"{path} is not a .safetensors file: a pickled one (.pt, .bin) is not opened, since it "
            "can run any code; save it as safetensors"
        )
    try:
        tensors = safetensors.numpy.load(filesystem.read_bytes(path))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is missing or damaged: {one_line(error)}") from None
    if len(tensors) != 1:
        raise WeightsError(
            f"{path} has {len(tensors)} tensors, but the vectors of a word are one tensor: give a "
            f"{LEARNED_EMBEDS_NAME} as diffusers or this pipeline writes it, for Stable Diffusion "
            "1.x or 2.x"
        )
    [found] = tensors.values()
    rows = np.atleast_2d(found).astype(np.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise WeightsError(
            f"{path} has vectors of shape {list(found.shape)}, but the text encoder needs width "
            f"{width}: they were learned for another model"
        )
    if len(rows) != vectors:
        raise WeightsError(f"{path} has {len(rows)} vectors: set word.vectors to {len(rows)}")
    if not np.isfinite(rows).all():
        raise WeightsError(f"{path} has vectors that are not finite")
    return rows
