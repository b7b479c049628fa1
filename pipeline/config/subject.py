"""Derives prompts and a dataset from the settings of a subject and its class."""

from __future__ import annotations

import dataclasses

from pipeline.config.schema import DatasetConfig, RunConfig
from storage.plain_text import plain


def subject_prompts(config: RunConfig) -> tuple[str, ...] | None:
    """Prompts that show whether the subject is learned and its class still known.

    Returns:
        The subject's caption, alone and in each scene, and the same for the class; `None` if there
        is no class, or the pictures have captions of their own.
    """
    subject, prior = config.dataset.caption, config.prior
    if subject is None or prior.caption is None:
        return None
    # Without a class, the tokenizer is not needed.
    from components.caption_example_gen.captions import CaptionTemplate

    template = CaptionTemplate.parse(config.dataset.caption_template or "")
    return tuple(
        f"{caption.strip()} {scene}".strip()
        for caption in (template.fill(plain(subject)), plain(prior.caption))
        for scene in ("", *prior.scenes)
    )


def class_dataset(config: RunConfig) -> DatasetConfig:
    """A folder of class pictures as a dataset. All are trained on, whatever their split."""
    prior = config.prior
    assert prior.folder is not None
    return dataclasses.replace(
        config.dataset,
        path=prior.folder,
        config=None,
        split="train",
        image_column=None,
        caption_column=None,
        form=None,
        caption=prior.caption,
        captions_from=None,
        caption_template=None,
        near_duplicates="ignore",
    )
