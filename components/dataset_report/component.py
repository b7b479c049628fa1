"""The DatasetReport component."""

from __future__ import annotations

import dataclasses
import json

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components import artifacts
from components.caption_example_gen.captions import TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.code_version import code_version
from components.dataset_report import executor
from components.dataset_report.reconstructions import AUTOENCODER
from trainer.data.buckets import BucketLimits
from trainer.weights.base_model import BaseModel


class DatasetReportSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of DatasetReport."""

    PARAMETERS = {
        "preset": component_spec.ExecutionParameter(type=str),
        "image_size": component_spec.ExecutionParameter(type=int),
        "base_weights": component_spec.ExecutionParameter(type=str),
        "autoencoder_hash": component_spec.ExecutionParameter(type=str),
        # `TagShuffle` as JSON; without it, captions are trained on as they are.
        "tags": component_spec.ExecutionParameter(type=str, optional=True),
        # `WordCaptions` as JSON; likewise.
        "word_captions": component_spec.ExecutionParameter(type=str, optional=True),
        # `BucketLimits` as JSON; without it, pictures are scaled and cropped to a square.
        "buckets": component_spec.ExecutionParameter(type=str, optional=True),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "statistics": component_spec.ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": component_spec.ChannelParameter(type=standard_artifacts.Schema),
        "anomalies": component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "rejects": component_spec.ChannelParameter(type=artifacts.RejectedRows),
        "baseline_statistics": component_spec.ChannelParameter(
            type=standard_artifacts.ExampleStatistics, optional=True
        ),
    }
    OUTPUTS = {"report": component_spec.ChannelParameter(type=artifacts.DatasetReport)}


class DatasetReport(base_component.BaseComponent):
    """Describes a dataset on one page.

    Outputs:
      report: `components.DatasetReport` with `dataset.html`: TFDV's statistics of captions and
        pictures, their buckets, sample pictures, the autoencoder's reconstructions of held-out
        pictures, the captions that are cut, anomalies, drift and rejected rows. It is one file that
        needs no network and no script.
    """

    SPEC_CLASS = DatasetReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        anomalies: types.BaseChannel,
        rejects: types.BaseChannel,
        base_model: BaseModel,
        tags: TagShuffle | None = None,
        word_captions: WordCaptions | None = None,
        buckets: BucketLimits | None = None,
        baseline_statistics: types.BaseChannel | None = None,
    ) -> None:
        """Makes the component.

        Args:
            examples: Output of CaptionExampleGen.
            statistics: StatisticsGen's statistics of the examples.
            schema: The schema that the statistics were validated against.
            anomalies: Result of the validation.
            rejects: The rows that CaptionExampleGen set aside.
            base_model: The model whose autoencoder is applied to the pictures, at its size.
            tags: How captions are varied for training, as in LatentGen; `None`: not at all.
            word_captions: How captions are varied if a new word is learned, as in LatentGen.
            buckets: Limits of the buckets that pictures are scaled and cropped to, as in LatentGen;
                `None`: a square.
            baseline_statistics: The statistics that CaptionValidator compared with, if any.

        Raises:
            WeightsError: A file of the weights is missing, or its expected hash is unknown.
        """
        super().__init__(
            DatasetReportSpec(
                preset=base_model.preset.name,
                image_size=base_model.image_size,
                base_weights=base_model.base_weights,
                autoencoder_hash=base_model.hash(AUTOENCODER),
                # Without variants, the settings for them are not part of the cache key.
                tags=json.dumps(dataclasses.asdict(tags)) if tags and tags.variants else None,
                word_captions=word_captions.to_json() if word_captions else None,
                buckets=json.dumps(dataclasses.asdict(buckets)) if buckets else None,
                code_version=code_version(executor.__name__),
                examples=examples,
                statistics=statistics,
                schema=schema,
                anomalies=anomalies,
                rejects=rejects,
                baseline_statistics=baseline_statistics,
                report=channel_utils.as_channel([artifacts.DatasetReport()]),
            )
        )
