"""The part of the pipeline that makes latents from the class pictures of a subject."""

from __future__ import annotations

from collections.abc import Callable

from tfx import types
from tfx.dsl.components.base.base_component import BaseComponent

from components.caption_example_gen import CaptionExampleGen
from components.class_pictures import ClassPictures
from components.latent_gen import LatentGen
from pipeline.config import DatasetConfig, RunConfig
from pipeline.config.subject import class_dataset
from trainer.weights.base_model import BaseModel

CLASS_PICTURES, CLASS_LATENT_GEN = "ClassPictures", "ClassLatentGen"
"""Names of the steps, whether the pictures are drawn or read from a dataset."""


def class_steps(
    config: RunConfig,
    base_model: BaseModel,
    example_gen: Callable[[DatasetConfig, str, str], CaptionExampleGen],
) -> tuple[list[BaseComponent], types.BaseChannel | None]:
    """The steps and the latents they produce; no steps and `None` if no class is named.

    Args:
        config: All settings, with the dataset resolved.
        base_model: The model that draws and encodes.
        example_gen: Builds the step that reads a dataset, given its settings, place and
            fingerprint.
    """
    prior = config.prior
    if prior.caption is None:
        return [], None
    pictures: BaseComponent
    if prior.folder is None:
        pictures = ClassPictures(
            base_model,
            caption=prior.plain_caption,
            pictures=prior.pictures,
            seed=prior.seed,
            sampler=prior.sampler,
            num_steps=prior.num_steps,
            guidance_scale=prior.guidance_scale,
        )
    else:
        pictures = example_gen(
            class_dataset(config), prior.folder, prior.folder_fingerprint or ""
        ).with_id(CLASS_PICTURES)
    latent_gen = LatentGen(
        examples=pictures.outputs["examples"],
        base_model=base_model,
        flip=config.model.flip,
        crop=config.model.crop,
        crop_seed=config.dataset.seed,
    ).with_id(CLASS_LATENT_GEN)
    return [pictures, latent_gen], latent_gen.outputs["latents"]
