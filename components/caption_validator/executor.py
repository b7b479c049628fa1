"""The work of CaptionValidator."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_data_validation.utils import anomalies_util
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator import executor
from tfx.dsl.io import fileio
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils

from components.caption_validator import drift, former
from components.caption_validator.anomalies import Anomaly, read_anomalies
from components.caption_validator.drift import Drift
from components.caption_validator.former import COMPARED_WITH, Former
from storage.user_errors import UserError

NUM_ANOMALIES = "num_anomalies"
NUM_DRIFTED, DRIFT = "num_drifted", "drift"

_LOGGED_ROWS = 5
_LOGGED_WORDS = 10

logger = logging.getLogger(__name__)


class Executor(executor.Executor):
    """Validates, logs the anomalies, and fails if configured to."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        """See `CaptionValidator`.

        Raises:
            UserError: There are anomalies and `fail_on_anomalies` is 1, or there is drift and
                `fail_on_drift` is 1.
        """
        output = super().Do(input_dict, output_dict, exec_properties)
        key = standard_component_specs.ANOMALIES_KEY
        artifact = artifact_utils.get_single_instance(output_dict[key])
        found, before = None, _former(input_dict, artifact, exec_properties)
        if before is not None:
            found = _compare(input_dict, before, artifact, json.loads(exec_properties["drift"]))
            _tell(found)
        anomalies = read_anomalies(artifact)
        artifact.set_int_custom_property(NUM_ANOMALIES, len(anomalies))
        # The returned copy was made before the property was set.
        output.output_artifacts[key].artifacts[0].CopyFrom(artifact.mlmd_artifact)
        if not anomalies:
            return output
        count = f"{len(anomalies)} {'anomaly' if len(anomalies) == 1 else 'anomalies'}"
        if exec_properties["fail_on_anomalies"]:
            raise UserError(
                f"the dataset has {count}, and this run is set to stop on anomalies: fix the "
                "dataset or the schema, or continue anyway with --fail-on-anomalies false\n"
                f"{_table(anomalies)}"
            )
        if found is not None and found.drifted and exec_properties["fail_on_drift"]:
            names = {measurement.feature for measurement in found.drifted}
            rows = [a for a in anomalies if a.feature in names and a.split == drift.COMPARED_SPLIT]
            raise UserError(
                "the dataset has drifted from the one that the starting model was trained on, and "
                "this run is set to stop on drift: fix the dataset, or continue anyway with "
                f"--fail-on-drift false\n{_table(rows)}"
            )
        more = len(anomalies) - _LOGGED_ROWS
        logger.warning(
            "The dataset has %s:\n%s%s",
            count,
            _table(anomalies[:_LOGGED_ROWS]),
            f"\n  and {more} more in {artifact.uri}" if more > 0 else "",
        )
        return output


def _former(
    input_dict: Mapping[str, list[types.Artifact]],
    anomalies: types.Artifact,
    exec_properties: Mapping[str, Any],
) -> Former | None:
    """The former dataset to compare with, if any; also records this dataset for later runs."""

    def given(key: str) -> types.Artifact | None:
        # On Vertex the looked-up artifact may not exist.
        artifacts = input_dict.get(key)
        return artifact_utils.get_single_instance(artifacts) if artifacts else None

    if (statistics := given("baseline_statistics")) is not None:
        return Former.of(statistics, given("baseline_examples"))
    folder = exec_properties.get("datasets_index")
    if not folder:
        return None
    found, model = None, given("base_model")
    if model is not None:
        try:
            found = former.find(folder, model)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("The record of the former dataset cannot be read: %s", error)
        if found is None:
            logger.warning(
                "There are no statistics of the dataset that the starting model was trained on, "
                "so this dataset is not checked for drift."
            )
        else:
            anomalies.set_string_custom_property(COMPARED_WITH, found.statistics.uri)
    examples, statistics = given("examples"), given(standard_component_specs.STATISTICS_KEY)
    assert examples is not None
    assert statistics is not None
    try:
        former.note(folder, examples, statistics)
    except (OSError, ValueError, TypeError) as error:
        # A record for later runs must not stop this one.
        logger.warning("This dataset cannot be recorded for later runs: %s", error)
    return found


def _compare(
    input_dict: Mapping[str, list[types.Artifact]],
    before: Former,
    anomalies: types.Artifact,
    thresholds: Mapping[str, float],
) -> Drift:
    """Adds drifted features to the anomalies, and writes the distance of every feature."""
    statistics = artifact_utils.get_single_instance(
        input_dict[standard_component_specs.STATISTICS_KEY]
    )
    schema = io_utils.SchemaReader().read(
        io_utils.get_only_uri_in_dir(
            artifact_utils.get_single_uri(input_dict[standard_component_specs.SCHEMA_KEY])
        )
    )
    rows, outcomes = None, None
    if input_dict.get("examples"):
        now = artifact_utils.get_single_instance(input_dict["examples"])
        if before.outcomes is not None:
            outcomes = drift.outcomes_of(now), before.outcomes
        try:
            if before.rows is not None:
                rows = drift.compare_rows(former.rows_of(now), before.rows)
        except (OSError, ValueError, TypeError) as error:
            # Damaged former data must not stop this run.
            logger.warning("The rows of the former dataset cannot be read: %s", error)
    try:
        measurements, drifted = drift.compare(
            statistics, before.statistics, schema, thresholds, outcomes
        )
    except (tf.errors.OpError, DecodeError) as error:
        # The dataset's own statistics have already been read.
        logger.warning("The statistics of the former dataset cannot be read: %s", error)
        measurements, drifted = (), anomalies_pb2.Anomalies()
    found = Drift(measurements, rows, outcomes)
    found.write(anomalies.uri)
    if measurements:
        anomalies.set_int_custom_property(NUM_DRIFTED, len({m.feature for m in found.drifted}))
        anomalies.set_string_custom_property(DRIFT, _in_short(found))
    if drifted.anomaly_info:
        folder = artifact_utils.get_split_uri([anomalies], drift.COMPARED_SPLIT)
        path = os.path.join(folder, executor.DEFAULT_FILE_NAME)
        all_of_split = anomalies_util.load_anomalies_binary(path)
        drift.merge(all_of_split, drifted)
        with fileio.open(path, "wb") as f:
            f.write(all_of_split.SerializeToString(deterministic=True))
        blessed = dict(
            anomalies.get_json_value_custom_property(executor.ARTIFACT_PROPERTY_BLESSED_KEY)
        )
        blessed[drift.COMPARED_SPLIT] = executor.NOT_BLESSED_VALUE
        anomalies.set_json_value_custom_property(executor.ARTIFACT_PROPERTY_BLESSED_KEY, blessed)
    return found


def _in_short(found: Drift) -> str:
    """The drifted features with their distances."""
    return ", ".join(f"{m.feature} {m.value:.2f}" for m in found.drifted) or "none"


def _tell(found: Drift) -> None:
    if found.measurements:
        logger.info(
            "Compared with the dataset that the starting model was trained on: %s.",
            "drift in " + _in_short(found) if found.drifted else "no drift",
        )
    rows = found.rows
    if rows is not None:
        logger.info(
            "Pictures: %s kept, %s added, %s removed; %s of those kept have other captions.",
            *(
                f"{number:,}"
                for number in (
                    rows.pictures_kept,
                    rows.pictures_added,
                    rows.pictures_removed,
                    rows.recaptioned,
                )
            ),
        )
        if rows.num_new_words:
            shown = ", ".join(repr(word) for word, _ in rows.new_words[:_LOGGED_WORDS])
            logger.info(
                "%s new words, in no caption of the former dataset%s: %s",
                f"{rows.num_new_words:,}",
                ", such as" if rows.num_new_words > _LOGGED_WORDS else "",
                shown,
            )


def _table(anomalies: Sequence[Anomaly]) -> str:
    rows = [("split", "feature", "what")]
    for anomaly in anomalies:
        texts = dict.fromkeys((anomaly.summary, anomaly.description))
        rows.append((anomaly.split, anomaly.feature, ": ".join(filter(None, texts))))
    split_width, feature_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(
        f"  {split:<{split_width}}  {feature:<{feature_width}}  {what}"
        for split, feature, what in rows
    )
