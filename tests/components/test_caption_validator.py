"""Validation of real statistics of small examples."""

from __future__ import annotations

import logging

import pytest
import tensorflow_data_validation as tfdv
from captioned_examples import (
    example,
    examples_artifact,
    schema_artifact,
    statistics_artifact,
)
from tfx.types import Channel, standard_artifacts

from components.caption_validator import CaptionValidator, executor
from components.caption_validator.anomalies import WHOLE_DATASET, read_anomalies
from storage.user_errors import UserError

CAPTIONS = [f"creature number {i} with a hat" for i in range(12)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    records = [example(caption) for caption in CAPTIONS]
    examples = examples_artifact(folder / "examples", {"train": records, "eval": records[:4]})
    statistics = statistics_artifact(folder / "statistics", examples)
    return statistics, schema_artifact(folder / "schema", statistics)


@pytest.fixture
def stricter(expected, tmp_path):
    """The schema with changes."""

    def stricter(change):
        schema = tfdv.load_schema_text(f"{expected[1].uri}/schema.pbtxt")
        change(schema)
        artifact = standard_artifacts.Schema()
        artifact.uri = str(tmp_path / "stricter")
        (tmp_path / "stricter").mkdir()
        tfdv.write_schema_text(schema, f"{artifact.uri}/schema.pbtxt")
        return artifact

    return stricter


def only_png(schema):
    tfdv.get_domain(schema, "image/format").value[:] = ["png"]


def needs_more_rows(schema):
    schema.dataset_constraints.min_examples_count = 6


def needs_more_features(schema):
    for index in range(4):
        feature = schema.feature.add()
        feature.CopyFrom(tfdv.get_feature(schema, "image/width"))
        feature.name = f"new/{index}"


@pytest.fixture
def validate(tmp_path):
    def validate(statistics, schema, fail_on_anomalies):
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(tmp_path / "anomalies")
        output = executor.Executor().Do(
            {"statistics": [statistics], "schema": [schema]},
            {"anomalies": [anomalies]},
            {"exclude_splits": "[]", "fail_on_anomalies": fail_on_anomalies, "code_version": "1"},
        )
        return anomalies, output.output_artifacts["anomalies"].artifacts[0]

    return validate


def test_no_anomalies_pass_even_where_they_would_stop_the_run(expected, validate, caplog):
    anomalies, returned = validate(*expected, fail_on_anomalies=1)
    assert read_anomalies(anomalies) == []
    assert returned.custom_properties["num_anomalies"].int_value == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_anomalies_are_logged_and_counted(expected, stricter, validate, caplog):
    anomalies, returned = validate(expected[0], stricter(only_png), fail_on_anomalies=0)
    found = read_anomalies(anomalies)
    assert [(row.split, row.feature) for row in found] == [
        ("train", "image/format"),
        ("eval", "image/format"),
    ]
    assert "jpeg" in found[0].description
    assert returned.custom_properties["num_anomalies"].int_value == 2
    assert anomalies.get_int_custom_property("num_anomalies") == 2
    # What TFX's own validator says stays.
    assert anomalies.get_json_value_custom_property("blessed") == {"train": 0, "eval": 0}
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    lines = warning.getMessage().splitlines()
    assert lines[0] == "The dataset has 2 anomalies:"
    assert lines[1].split() == ["split", "feature", "what"]
    assert lines[3] == f"  eval   image/format  {found[1].summary}: {found[1].description}"


def test_anomalies_stop_the_run_if_asked_to(expected, stricter, validate):
    with pytest.raises(UserError, match=r"has 2 anomalies.*--fail-on-anomalies false") as error:
        validate(expected[0], stricter(only_png), fail_on_anomalies=1)
    rows = [line.split()[:2] for line in str(error.value).splitlines()[2:]]
    assert rows == [["train", "image/format"], ["eval", "image/format"]]


def test_an_anomaly_of_the_whole_dataset_counts(expected, stricter, validate):
    anomalies, _ = validate(expected[0], stricter(needs_more_rows), fail_on_anomalies=0)
    [row] = read_anomalies(anomalies)
    assert (row.split, row.feature) == ("eval", WHOLE_DATASET)
    assert row.summary


def test_more_anomalies_than_are_logged_are_said_to_be_more(expected, stricter, validate, caplog):
    anomalies, _ = validate(expected[0], stricter(needs_more_features), fail_on_anomalies=0)
    assert [row.feature for row in read_anomalies(anomalies)[:4]] == [f"new/{i}" for i in range(4)]
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "The dataset has 8 anomalies" in warning.getMessage()
    assert warning.getMessage().splitlines()[-1] == f"  and 3 more in {anomalies.uri}"


@pytest.mark.parametrize("fail", [False, True])
def test_the_component_makes_its_spec(fail):
    component = CaptionValidator(
        statistics=Channel(type=standard_artifacts.ExampleStatistics),
        schema=Channel(type=standard_artifacts.Schema),
        fail_on_anomalies=fail,
    )
    assert component.outputs["anomalies"].type is standard_artifacts.ExampleAnomalies
    assert component.exec_properties["fail_on_anomalies"] == int(fail)
    assert component.exec_properties["exclude_splits"] == "[]"
    assert len(component.exec_properties["code_version"]) == 16
