"""The LatentGen component."""

from __future__ import annotations

import dataclasses
import json

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components.caption_example_gen.captions import TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.code_version import code_version
from components.latent_gen import executor
from components.latent_gen.encoding import CROP_CENTRE, CROP_RANDOM, CROPS
from trainer.data.buckets import BucketLimits
from trainer.presets import ENCODERS
from trainer.weights.base_model import BaseModel


class LatentGenSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of LatentGen."""

    PARAMETERS = {
        "preset": component_spec.ExecutionParameter(type=str),
        "image_size": component_spec.ExecutionParameter(type=int),
        "base_weights": component_spec.ExecutionParameter(type=str),
        "encoders_hash": component_spec.ExecutionParameter(type=str),
        "flip": component_spec.ExecutionParameter(type=str),
        "crop": component_spec.ExecutionParameter(type=str),
        "crop_seed": component_spec.ExecutionParameter(type=int),
        # `BucketLimits` as JSON; without it, pictures are scaled and cropped to a square.
        "buckets": component_spec.ExecutionParameter(type=str, optional=True),
        "tag_variants": component_spec.ExecutionParameter(type=int),
        "tag_keep": component_spec.ExecutionParameter(type=int),
        "tag_dropout": component_spec.ExecutionParameter(type=float),
        "tag_seed": component_spec.ExecutionParameter(type=int),
        # `WordCaptions` as JSON; without it, no new word is learned.
        "word_captions": component_spec.ExecutionParameter(type=str, optional=True),
        "latents_index": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {"examples": component_spec.ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"latents": component_spec.ChannelParameter(type=standard_artifacts.Examples)}


class LatentGen(base_beam_component.BaseBeamComponent):
    """Encodes every picture and caption with the frozen encoders, so that training need not.

    Outputs:
      latents: `standard_artifacts.Examples` with the splits, shards and order of the examples;
        records as `trainer.data.latents.make_latent_example` makes them, and `manifest.json`
        (`trainer.data.latents.LatentsManifest`); `choosing.json`, the ids of the held-out examples
        that choose a model, if one is to be chosen. Custom properties: `preset`, `image_size`,
        `flip`, `encoders_hash`, `num_<split>` for every split, and `buckets`, the number of
        buckets, if there are any; and for all these records, `pictures_taken_over` from former
        runs, `pictures_encoded`, `captions_taken_over` and `captions_encoded`.

    The output is the same, byte for byte, however much is taken over.
    """

    SPEC_CLASS = LatentGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        base_model: BaseModel,
        flip: str = executor.FLIP_AUTO,
        crop: str = CROP_CENTRE,
        crop_seed: int = 0,
        buckets: BucketLimits | None = None,
        tags: TagShuffle | None = None,
        latents_index: str = "",
        word_captions: WordCaptions | None = None,
    ) -> None:
        """Makes the component.

        Args:
            examples: Output of CaptionExampleGen.
            base_model: The model whose encoders are used; pictures are scaled and cropped to its
                size.
            flip: Whether to also encode the mirror image of every picture: `always`, `never`, or
                `auto`, which does so unless a caption says left or right.
            crop: Which part of a picture of another shape is kept: its `centre`, or a `random` one,
                always the same for the same picture, caption and seed.
            crop_seed: Seed of the random part.
            buckets: Limits of the sizes that pictures are scaled and cropped to, each to the size
                nearest to its shape; `None`: squares of the base model's size.
            tags: How captions of the train split are varied; `None`: they are used unchanged.
            latents_index: Folder of the index of what former runs encoded, directly below the
                folder that all runs write to; their latents of unchanged pictures are taken over.
                "": everything is encoded, and nothing is added to an index.
            word_captions: How captions are varied if a new word is learned; `None`: none is
                learned.

        Raises:
            ValueError: `flip` or `crop` is not an allowed value, or captions are to be varied in
                two ways.
            WeightsError: A file of the weights is missing, or its expected hash is unknown.
        """
        for name, value, allowed in (
            ("flip", flip, executor.FLIPS),
            ("crop", crop, CROPS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if tags is not None and tags.variants and word_captions and word_captions.templates:
            raise ValueError(
                "captions can be varied by their tags or by the templates of a new word, not both"
            )
        # Without variants, the settings for them are not part of the cache key.
        if tags is None or not tags.variants:
            tags = TagShuffle()
        super().__init__(
            LatentGenSpec(
                preset=base_model.preset.name,
                image_size=base_model.image_size,
                base_weights=base_model.base_weights,
                # If the weights at the same path change, the cache must not return old latents.
                encoders_hash=base_model.hash(ENCODERS),
                flip=flip,
                crop=crop,
                crop_seed=crop_seed if crop == CROP_RANDOM else 0,
                buckets=json.dumps(dataclasses.asdict(buckets)) if buckets else None,
                tag_variants=tags.variants,
                tag_keep=tags.keep,
                tag_dropout=float(tags.dropout),
                tag_seed=tags.seed,
                word_captions=word_captions.to_json() if word_captions else None,
                latents_index=latents_index,
                code_version=code_version(executor.__name__),
                examples=examples,
                latents=channel_utils.as_channel([standard_artifacts.Examples()]),
            )
        )
