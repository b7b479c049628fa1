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
        # Without a class, nothing is said of it.
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
    """Scores a candidate and a baseline on held-out examples, on the same noise.

    Every example is scored at one timestep of each stratum, or at several where there are few
    examples. Timesteps and noise depend on the example's id and the seed alone, so equal models
    have equal losses, run after run.

    The baseline is `baseline_model` if there is one, and otherwise the base weights. One of another
    preset or image size cannot be compared: its losses are NaN, and no such candidate is blessed.

    Where the candidate or the baseline was chosen by a half of the held-out pictures while it was
    trained, the other half alone is scored. Where the candidate started from another model, what
    that one or the baseline was trained on is not scored, though it is held out now.

    For some of the captions both models draw a picture, from the same noise.

    Where it is asked to, it also looks whether the candidate remembers training pictures: it scores
    some of them, measures how much of a prediction is the caption's doing, and draws pictures for
    training captions, which it holds against all training pictures.

    Outputs:
      scores: `standard_artifacts.Examples`, split `eval`, a record for every example and draw:
        `id`, `timestep`, `timestep_bucket` (such as `000-099`), `caption_bucket` (such as `01-10
        tokens`), `group` (0 to 1023, the same for the rows of one picture), `loss`,
        `loss_baseline`, `loss_delta` (loss - loss_baseline) and `label` (0). Where pictures were
        drawn for the example, each of its records has what was measured of them, floats (see
        `features` of the measures in `components.measures`). Custom properties: `num_examples`,
        `num_pictures`, `num_draws` (rows of an example in a stratum), `num_rows`,
        `num_candidate_not_finite` and `num_baseline_not_finite` (rows with a loss that is not a
        finite number), `num_choosing` (examples that are not scored, because a model was chosen by
        them while it was trained), `num_trained_on_before` (examples that are not scored, because
        a model was trained on their pictures; where there are any), `num_sampled`, `num_strata`,
        `seed`, `baseline` (`base weights` or `model <artifact id>`) and, where it cannot be
        compared, `baseline_problem`.

        Where training pictures are looked at, a split `remembering` has rows of their own, each
        with `group`, `label` and some of these features: `train_loss`, `train_loss_baseline` and
        `train_loss_delta`, with `timestep_bucket`; `text_part` of held-out pictures and
        `train_text_part`; `nearness` of drawn pictures and `nearness_held_out`. `nearest.json`
        beside the splits lists the drawn pictures that are nearest to training pictures (see
        `components.loss_scorer.remembering.Pair`). Custom properties: `num_training_pictures`,
        `num_training_samples`, `num_training_not_finite`, and `milliseconds_...` that each part
        took.

        Where pictures of a subject's class are drawn, a split `class` has a row for each, with
        `group`, `label` and `class_distance` (see `components.measures.class_distance`): how far
        it has moved from the one that the base weights draw. Custom properties:
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
            latents: What LatentGen made; the split `eval` is scored.
            model: The candidate.
            baseline_model: What it is compared with; may stay empty.
            base_model: What the candidate was trained from.
            num_strata: Equal parts of the timesteps; each example is scored in each.
            min_draws: Times that is done in each, at least, over all examples together.
            seed: Gives other timesteps and noise, and other captions to draw pictures for.
            num_samples: Captions to draw pictures for.
            num_training_pictures: Training pictures to score beside the held-out ones.
            num_training_samples: Captions of training pictures to draw pictures for, to look for
                copies.
            sampler: How they are drawn, one of `trainer.diffusion.samplers.SAMPLERS`.
            sample_steps: Sampling steps of these pictures.
            sample_guidance_scale: Their classifier-free guidance scale.
            measures: Names of measures of these pictures that the dataset asks for.
            clip_model: Address of a CLIP to score them with (see `components.measures.clip.Clip`);
                empty: none.
            class_caption: What a subject is one of, such as `a photo of a dog`; empty: nothing.
            num_class_pictures: Pictures of that which candidate and base weights draw.

        Raises:
            ValueError: A setting is impossible, or there is no such measure.
            WeightsError: A file of the weights is missing, or nobody says what its hash should be.
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
                # Other weights at the same place must not find old scores in the cache.
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
