"""The ClassPictures component."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components.class_pictures import executor
from components.code_version import code_version
from trainer.weights.base_model import BaseModel


class ClassPicturesSpec(component_spec.ComponentSpec):
    """Outputs and settings of ClassPictures."""

    PARAMETERS = {
        "preset": component_spec.ExecutionParameter(type=str),
        "image_size": component_spec.ExecutionParameter(type=int),
        "base_weights": component_spec.ExecutionParameter(type=str),
        "base_weights_hash": component_spec.ExecutionParameter(type=str),
        "caption": component_spec.ExecutionParameter(type=str),
        "pictures": component_spec.ExecutionParameter(type=int),
        "seed": component_spec.ExecutionParameter(type=int),
        "sampler": component_spec.ExecutionParameter(type=str),
        "num_steps": component_spec.ExecutionParameter(type=int),
        "guidance_scale": component_spec.ExecutionParameter(type=float),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: dict[str, component_spec.ChannelParameter] = {}
    OUTPUTS = {"examples": component_spec.ChannelParameter(type=standard_artifacts.Examples)}


class ClassPictures(base_component.BaseComponent):
    """Draws pictures of a subject's class with the base weights, for prior preservation.

    Outputs:
      examples: `standard_artifacts.Examples` with one split, `train`, in the format of
        CaptionExampleGen, for LatentGen. The picture for seed s is the one that `serving.generate`
        draws with the base weights from s. Custom properties: `num_train`, `captions_left_right`,
        and `caption`, `seed`, `sampler`, `num_steps` and `guidance_scale`, as in the execution.
    """

    SPEC_CLASS = ClassPicturesSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        base_model: BaseModel,
        *,
        caption: str,
        pictures: int,
        seed: int,
        sampler: str,
        num_steps: int,
        guidance_scale: float,
    ) -> None:
        """Makes the component.

        Args:
            base_model: The model that draws.
            caption: What to draw, such as `a photo of a dog`.
            pictures: Number of pictures, each with its own seed.
            seed: Seed of the first picture.
            sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
            num_steps: Sampling steps.
            guidance_scale: Classifier-free guidance scale.

        Raises:
            WeightsError: A file of the weights is missing, or its expected hash is unknown.
        """
        super().__init__(
            ClassPicturesSpec(
                preset=base_model.preset.name,
                image_size=base_model.image_size,
                base_weights=base_model.base_weights,
                # If the weights at the same path change, the cache must not return old pictures.
                base_weights_hash=base_model.hash(executor.DRAWING),
                caption=caption,
                pictures=pictures,
                seed=seed,
                sampler=sampler,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                code_version=code_version(executor.__name__),
                examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            )
        )
