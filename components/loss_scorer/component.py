"""The LossScorer component."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components.code_version import code_version
from components.loss_scorer import executor
from components.measures import MeasureSettings, applying
from trainer.weights.base_model import BaseModel

_MAX_STRATA = 1000


class LossScorerSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of LossScorer."""

    PARAMETERS = {
        "preset": component_spec.ExecutionParameter(type=str),
        "image_size": component_spec.ExecutionParameter(type=int),
        "base_weights": component_spec.ExecutionParameter(type=str),
        "base_weights_hash": component_spec.ExecutionParameter(type=str),
        "num_strata": component_spec.ExecutionParameter(type=int),
        "min_draws": component_spec.ExecutionParameter(type=int),
        "seed": component_spec.ExecutionParameter(type=int),
        "num_samples": component_spec.ExecutionParameter(type=int),
        "num_training_pictures": component_spec.ExecutionParameter(type=int),
        "num_training_samples": component_spec.ExecutionParameter(type=int),
        "sampler": component_spec.ExecutionParameter(type=str),
        "sample_steps": component_spec.ExecutionParameter(type=int),
        "sample_guidance_scale": component_spec.ExecutionParameter(type=float),
        "measures": component_spec.ExecutionParameter(type=str),
        "clip_model": component_spec.ExecutionParameter(type=str),
        "clip_model_hash": component_spec.ExecutionParameter(type=str),
        # Left out if there is no class.
        "class_caption": component_spec.ExecutionParameter(type=str, optional=True),
        "num_class_pictures": component_spec.ExecutionParameter(type=int, optional=True),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "latents": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "baseline_model": component_spec.ChannelParameter(
            type=standard_artifacts.Model, optional=True
        ),
    }
    OUTPUTS = {"scores": component_spec.ChannelParameter(type=standard_artifacts.Examples)}


class LossScorer(base_beam_component.BaseBeamComponent):
    """Scores a candidate and a baseline on held-out examples, with the same noise.

    Every example is scored at one timestep of each stratum, or at several if there are few
    examples. Timesteps and noise depend only on the example's id and the seed, so equal models have
    equal losses, run after run.

    The baseline is `baseline_model` if there is one, and otherwise the base weights. A baseline of
    another preset or image size cannot be compared: its losses are NaN, and the candidate is not
    blessed.

    If one half of the held-out pictures chose the candidate or the baseline during its training,
    only the other half is scored. If the candidate started from another model, held-out pictures
    that this model or the baseline was trained on are not scored.

    For some of the captions, both models draw a picture from the same noise.

    On request, it also checks whether the candidate remembers training pictures: it scores some of
    them, measures how much of a prediction depends on the caption, and draws pictures for training
    captions, which it compares with all training pictures.

    Outputs:
      scores: `standard_artifacts.Examples`, split `eval`, one record for every example and draw:
        `id`, `timestep`, `timestep_bucket` (such as `000-099`), `caption_bucket` (such as `01-10
        tokens`), `group` (0 to 1023, the same for the rows of one picture), `loss`,
        `loss_baseline`, `loss_delta` (loss - loss_baseline) and `label` (0). If pictures were
        drawn for the example, each of its records has their measures, floats (see `features` of
        the measures in `components.measures`). Custom properties: `num_examples`, `num_pictures`,
        `num_draws` (rows of an example in a stratum), `num_rows`, `num_candidate_not_finite` and
        `num_baseline_not_finite` (rows with a loss that is not a finite number), `num_choosing`
        (examples that are not scored because they chose a model during its training),
        `num_trained_on_before` (examples that are not scored because a model was trained on their
        pictures; if there are any), `num_sampled`, `num_strata`, `seed`, `baseline` (`base weights`
        or `model <artifact id>`) and, if it cannot be compared, `baseline_problem`.

        If training pictures are examined, a split `remembering` has separate rows for them, each
        with `group`, `label` and some of these features: `train_loss`, `train_loss_baseline` and
        `train_loss_delta`, with `timestep_bucket`; `text_part` of held-out pictures and
        `train_text_part`; `nearness` of drawn pictures and `nearness_held_out`. `nearest.json`
        beside the splits lists the drawn pictures that are nearest to training pictures (see
        `components.loss_scorer.remembering.Pair`). Custom properties: `num_training_pictures`,
        `num_training_samples`, `num_training_not_finite`, and `milliseconds_...` for the duration
        of each part.

        If pictures of a subject's class are drawn, a split `class` has one row for each, with
        `group`, `label` and `class_distance` (see `components.measures.class_distance`): how far
        it has moved from the picture that the base weights draw. Custom properties:
        `num_class_pictures`, `class_caption`, `milliseconds_class_pictures`.
    """

    SPEC_CLASS = LossScorerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        latents: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel | None = None,
        *,
        base_model: BaseModel,
        num_strata: int = 10,
        min_draws: int = 50,
        seed: int = 0,
        num_samples: int = 0,
        num_training_pictures: int = 0,
        num_training_samples: int = 0,
        sampler: str = "ddim",
        sample_steps: int = 25,
        sample_guidance_scale: float = 7.5,
        measures: Sequence[str] = (),
        clip_model: str = "",
        class_caption: str = "",
        num_class_pictures: int = 0,
    ) -> None:
        """Makes the component.

        Args:
            latents: Output of LatentGen; the split `eval` is scored.
            model: The candidate.
            baseline_model: The model to compare it with; may stay empty.
            base_model: The model that the candidate was trained from.
            num_strata: Equal parts of the timesteps; each example is scored in each stratum.
            min_draws: Minimum number of scores in each stratum, over all examples together.
            seed: Seed of the timesteps, the noise and the choice of captions to draw.
            num_samples: Number of captions to draw pictures for.
            num_training_pictures: Number of training pictures to score beside the held-out ones.
            num_training_samples: Number of captions of training pictures to draw pictures for, to
                look for copies.
            sampler: Sampler for the pictures, one of `trainer.diffusion.samplers.SAMPLERS`.
            sample_steps: Sampling steps of the pictures.
            sample_guidance_scale: Classifier-free guidance scale of the pictures.
            measures: Names of measures of the pictures that the dataset asks for.
            clip_model: Address of a CLIP to score the pictures with (see
                `components.measures.clip.Clip`); empty: none.
            class_caption: The subject's class, such as `a photo of a dog`; empty: none.
            num_class_pictures: Number of class pictures that candidate and base weights draw.

        Raises:
            ValueError: A setting is impossible, or there is no such measure.
            WeightsError: A file of the weights is missing, or its expected hash is unknown.
        """
        if not 1 <= num_strata <= _MAX_STRATA:
            raise ValueError(
                f"num_strata {num_strata} is impossible: it must be from 1 to {_MAX_STRATA}"
            )
        applying(MeasureSettings(tuple(measures), clip_model))
        # Imports Keras.
        from components.measures.clip import clip_hash

        draws_class = bool(class_caption and num_class_pictures)
        super().__init__(
            LossScorerSpec(
                preset=base_model.preset.name,
                image_size=base_model.image_size,
                base_weights=base_model.base_weights,
                # If the weights at the same path change, the cache must not return old scores.
                base_weights_hash=base_model.hash(executor.SCORED),
                num_strata=num_strata,
                min_draws=min_draws,
                seed=seed,
                num_samples=num_samples,
                num_training_pictures=num_training_pictures,
                num_training_samples=num_training_samples,
                sampler=sampler,
                sample_steps=sample_steps,
                sample_guidance_scale=sample_guidance_scale,
                measures=json.dumps(list(measures)),
                clip_model=clip_model,
                clip_model_hash=clip_hash(clip_model) if clip_model else "",
                class_caption=class_caption if draws_class else None,
                num_class_pictures=num_class_pictures if draws_class else None,
                code_version=code_version(executor.__name__),
                latents=latents,
                model=model,
                baseline_model=baseline_model,
                scores=channel_utils.as_channel([standard_artifacts.Examples()]),
            )
        )
