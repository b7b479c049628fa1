"""The WithdrawnReport component."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components import artifacts
from components.caption_example_gen.sources import DatasetSpec
from components.caption_example_gen.word_captions import WordCaptions
from components.code_version import code_version
from components.latent_gen.encoding import CROP_CENTRE, CROP_RANDOM
from components.loss_scorer.executor import SCORED
from components.withdrawn_report import executor
from storage.withdrawn import KnownBy
from trainer.data.buckets import BucketLimits
from trainer.weights.base_model import BaseModel


class WithdrawnReportSpec(component_spec.ComponentSpec):
    """Inputs, output and settings of WithdrawnReport."""

    PARAMETERS = {
        "dataset": component_spec.ExecutionParameter(type=str),
        # The rest of the `DatasetSpec`, as JSON.
        "spec": component_spec.ExecutionParameter(type=str),
        # A `KnownBy` as JSON.
        "known_by": component_spec.ExecutionParameter(type=str),
        "preset": component_spec.ExecutionParameter(type=str),
        "image_size": component_spec.ExecutionParameter(type=int),
        "base_weights": component_spec.ExecutionParameter(type=str),
        "base_weights_hash": component_spec.ExecutionParameter(type=str),
        "crop": component_spec.ExecutionParameter(type=str),
        "crop_seed": component_spec.ExecutionParameter(type=int),
        # The same as for LatentGen.
        "buckets": component_spec.ExecutionParameter(type=str, optional=True),
        "word_captions": component_spec.ExecutionParameter(type=str, optional=True),
        "num_strata": component_spec.ExecutionParameter(type=int),
        "min_draws": component_spec.ExecutionParameter(type=int),
        "seed": component_spec.ExecutionParameter(type=int),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "rejects": component_spec.ChannelParameter(type=artifacts.RejectedRows),
        "latents": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
    }
    OUTPUTS = {"report": component_spec.ChannelParameter(type=artifacts.WithdrawnReport)}


class WithdrawnReport(base_component.BaseComponent):
    """Reports what was withdrawn, and which releases and whether the model know it.

    The withdrawn pictures are read again if the dataset still has them, encoded, scored beside
    held-out ones, and discarded: only numbers are kept.

    Outputs:
      report: `components.WithdrawnReport` with `withdrawn.html` and `withdrawn.json`; if the list
        gives several reasons, a folder `requests` with the same files for each reason, so that
        nobody receives what concerns others. Custom properties: `withdrawn_rows`, and, if pictures
        could be scored, `withdrawn_loss`, `withdrawn_gap` and `withdrawn_gap_added` (see
        `components.withdrawn_report.losses.Gap`).
    """

    SPEC_CLASS = WithdrawnReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        rejects: types.BaseChannel,
        latents: types.BaseChannel,
        model: types.BaseChannel,
        *,
        dataset: Any,
        spec: DatasetSpec,
        base_model: BaseModel,
        known_by: KnownBy | None = None,
        crop: str = CROP_CENTRE,
        crop_seed: int = 0,
        buckets: BucketLimits | None = None,
        word_captions: WordCaptions | None = None,
        num_strata: int = 10,
        min_draws: int = 50,
        seed: int = 0,
    ) -> None:
        """Makes the component.

        Args:
            rejects: The rows that CaptionExampleGen set aside.
            latents: LatentGen's output for the other rows.
            model: The model that was trained on them.
            dataset: Path or address of the dataset; may be a runtime parameter.
            spec: What is read from the dataset, and how; its `dataset` is ignored here.
            base_model: The model that training started from; its encoders are used.
            known_by: Which releases know what is withdrawn; `None`: not looked up.
            crop: As for LatentGen.
            crop_seed: As for LatentGen.
            buckets: As for LatentGen.
            word_captions: As for LatentGen.
            num_strata: As for LossScorer.
            min_draws: As for LossScorer.
            seed: As for LossScorer.

        Raises:
            WeightsError: A file of the weights is missing, or its expected hash is unknown.
        """
        how = dataclasses.asdict(spec)
        # The withdrawn rows are recorded with the rejected rows.
        del how["dataset"], how["withdrawn"]
        super().__init__(
            WithdrawnReportSpec(
                dataset=dataset,
                spec=json.dumps(how, sort_keys=True),
                known_by=(known_by or KnownBy(problem="not looked up")).to_json(),
                preset=base_model.preset.name,
                image_size=base_model.image_size,
                base_weights=base_model.base_weights,
                base_weights_hash=base_model.hash(SCORED),
                crop=crop,
                crop_seed=crop_seed if crop == CROP_RANDOM else 0,
                buckets=json.dumps(dataclasses.asdict(buckets)) if buckets else None,
                word_captions=word_captions.to_json() if word_captions else None,
                num_strata=num_strata,
                min_draws=min_draws,
                seed=seed,
                code_version=code_version(executor.__name__),
                rejects=rejects,
                latents=latents,
                model=model,
                report=channel_utils.as_channel([artifacts.WithdrawnReport()]),
            )
        )
