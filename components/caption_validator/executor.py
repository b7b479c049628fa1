"""The work of CaptionValidator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tfx import types
from tfx.components.example_validator import executor
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils, standard_component_specs

from components.caption_validator.anomalies import Anomaly, read_anomalies
from storage.user_errors import UserError

NUM_ANOMALIES = "num_anomalies"

_LOGGED_ROWS = 5

logger = logging.getLogger(__name__)


class Executor(executor.Executor):
    """Validates, logs what was found, and fails if asked to."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        """See `CaptionValidator`.

        Raises:
            UserError: There are anomalies, and `fail_on_anomalies` is 1.
        """
        output = super().Do(input_dict, output_dict, exec_properties)
        key = standard_component_specs.ANOMALIES_KEY
        artifact = artifact_utils.get_single_instance(output_dict[key])
        anomalies = read_anomalies(artifact)
        artifact.set_int_custom_property(NUM_ANOMALIES, len(anomalies))
        # What is returned is a copy from before the property was set.
        output.output_artifacts[key].artifacts[0].CopyFrom(artifact.mlmd_artifact)
        if not anomalies:
            return output
        count = f"{len(anomalies)} {'anomaly' if len(anomalies) == 1 else 'anomalies'}"
        if exec_properties["fail_on_anomalies"]:
            raise UserError(
                f"the dataset has {count}, at which this run is to stop: mend the dataset or the "
                f"schema, or go on all the same with --fail-on-anomalies false\n{_table(anomalies)}"
            )
        more = len(anomalies) - _LOGGED_ROWS
        logger.warning(
            "The dataset has %s:\n%s%s",
            count,
            _table(anomalies[:_LOGGED_ROWS]),
            f"\n  and {more} more, in {artifact.uri}" if more > 0 else "",
        )
        return output


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
