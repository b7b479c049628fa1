"""The files of a release for other tools: the whole model, its adapters, a word's vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serving.releases import CHECKPOINT_NAME
from serving.serving_directory import WriteFile
from storage import filesystem
from trainer.data.caption_counts import read_counts
from trainer.model_spec import LEARNED_EMBEDS_NAME, LORA_NAME, release_keys, tag_keys, with_header


class SingleFile(NamedTuple):
    """A file that is made for a release.

    Attributes:
        stored_as: Data type of its weights.
        write: Writes the file.
    """

    stored_as: str
    write: WriteFile


def single_files(
    source: str, facts: Mapping[str, Any], *, checkpoint: str, captions_of: str | None
) -> dict[str, SingleFile]:
    """The files that go into a release, by name.

    Args:
        source: Folder with the SavedModels, and `lora.safetensors` if the model has adapters, and
            `learned_embeds.safetensors` if it knows a new word.
        facts: Facts of the release, without its number.
        checkpoint: Data type of the weights of the whole model; "" for no such file.
        captions_of: The latents whose caption words are named with the adapters; `None` for none.
    """
    preset_name = facts["preset"]

    def release(version: int) -> dict[str, str]:
        return release_keys(
            preset_name,
            version=version,
            pushed_at=facts["pushed_at"],
            run=facts["lineage"]["pipeline_run"],
        )

    def write_checkpoint(path: str, version: int) -> None:
        # Imports Keras.
        from trainer.weights.diffusers_export import export_trained

        export_trained(source, path, dtype=checkpoint, release=release(version))

    def write_adapters(path: str, version: int) -> None:
        tags = {} if captions_of is None else tag_keys(read_counts(captions_of))
        Path(path).write_bytes(
            with_header(filesystem.read_bytes(adapters), release(version) | tags)
        )

    def write_word(path: str, version: int) -> None:
        # Its title is the word, not the title of the release.
        said = {k: v for k, v in release(version).items() if k != "modelspec.title"}
        Path(path).write_bytes(with_header(filesystem.read_bytes(word), said))

    files = {}
    if checkpoint:
        files[CHECKPOINT_NAME] = SingleFile(checkpoint, write_checkpoint)
    adapters = os.path.join(source, LORA_NAME)
    if filesystem.is_file(adapters):
        files[LORA_NAME] = SingleFile("float32", write_adapters)
    word = os.path.join(source, LEARNED_EMBEDS_NAME)
    if filesystem.is_file(word):
        files[LEARNED_EMBEDS_NAME] = SingleFile("float32", write_word)
    return files
