"""The former dataset to compare with, and how it is found without ML Metadata.

On Vertex a component cannot query what a model was trained on. So every run records its dataset in
one file, named by the digest of its rows, which is also in the model's manifest. Paths in it are
relative to the parent of the folder of records.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from tfx import types
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from components.caption_validator.drift import COMPARED_SPLIT, outcomes_of
from storage import filesystem, row_index
from storage.model_manifest import ModelManifest

COMPARED_WITH = "compared_with"
"""Property of anomalies: the location of former statistics that were found by a record."""
_STATISTICS, _EXAMPLES, _OUTCOMES = "statistics", "examples", "outcomes"


@dataclasses.dataclass(frozen=True)
class Former:
    """A former dataset.

    Attributes:
        statistics: Its `ExampleStatistics`.
        rows: Folder of the index of its rows; `None` if unknown.
        outcomes: How many of its rows were kept and set aside; `None` if unknown.
    """

    statistics: types.Artifact
    rows: str | None = None
    outcomes: Mapping[str, int] | None = None

    @classmethod
    def of(cls, statistics: types.Artifact, examples: types.Artifact | None) -> Former:
        """The former dataset of artifacts from ML Metadata."""
        if examples is None:
            return cls(statistics)
        return cls(statistics, rows_of(examples), outcomes_of(examples))


def rows_of(examples: types.Artifact) -> str:
    """Folder of the index of the examples' rows."""
    return filesystem.join(examples.uri, row_index.FOLDER_NAME)


def note(folder: str, examples: types.Artifact, statistics: types.Artifact) -> None:
    """Records a dataset, unless it is outside the parent of `folder`.

    Raises:
        OSError: The rows cannot be read, or the record cannot be written.
        ValueError: The index of the rows is damaged.
    """
    start = f"{filesystem.parent(folder).rstrip('/')}/"
    found = {_STATISTICS: statistics.uri, _EXAMPLES: examples.uri}
    splits = artifact_utils.decode_split_names(statistics.split_names)
    if COMPARED_SPLIT not in splits or not all(uri.startswith(start) for uri in found.values()):
        return
    places = {what: uri.removeprefix(start) for what, uri in found.items()}
    content = json.dumps({**places, _OUTCOMES: outcomes_of(examples)}, indent=1) + "\n"
    filesystem.make_folder(folder)
    path = _path(folder, row_index.digest(rows_of(examples)))
    filesystem.write_atomically(path, content.encode())


def find(folder: str, model: types.Artifact) -> Former | None:
    """The recorded dataset that a model was trained on; `None` if there is no record.

    Raises:
        OSError: The record or the model's manifest cannot be read.
        ValueError: One of them is damaged; this may also raise a `KeyError` or `TypeError`.
    """
    manifest = ModelManifest.find(path_utils.serving_model_dir(model.uri))
    digest = manifest.latents.get("rows_digest") if manifest else None
    if not digest or not filesystem.is_file(path := _path(folder, str(digest))):
        return None
    told = json.loads(filesystem.read_bytes(path))
    root = filesystem.parent(folder)
    places = {w: filesystem.join(root, *told[w].split("/")) for w in (_STATISTICS, _EXAMPLES)}
    if not filesystem.is_folder(places[_STATISTICS]):
        return None
    rows = filesystem.join(places[_EXAMPLES], row_index.FOLDER_NAME)
    return Former(
        _statistics_in(places[_STATISTICS]),
        rows if filesystem.is_folder(rows) else None,
        {str(outcome): int(count) for outcome, count in told[_OUTCOMES].items()},
    )


def found_statistics(anomalies: types.Artifact) -> types.Artifact | None:
    """The former statistics that were found by a record and compared; `None` if there are none."""
    uri = anomalies.get_string_custom_property(COMPARED_WITH)
    return _statistics_in(uri) if uri else None


def _statistics_in(uri: str) -> types.Artifact:
    """The statistics in a folder, for the compared split."""
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = uri
    statistics.split_names = artifact_utils.encode_split_names([COMPARED_SPLIT])
    return statistics


def _path(folder: str, digest: str) -> str:
    return filesystem.join(folder, f"{digest}.json")
