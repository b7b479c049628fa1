"""What drifts away from a former dataset, by TFDV's comparators on real statistics."""

from __future__ import annotations

import hashlib
import json
import logging
import math

import pytest
import tensorflow_data_validation as tfdv
from captioned_examples import example, examples_artifact, schema_artifact
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tfx.types import Channel, standard_artifacts
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from components.caption_example_gen import rows
from components.caption_validator import CaptionValidator, drift, executor
from components.caption_validator.anomalies import read_anomalies
from components.caption_validator.former import found_statistics, rows_of
from components.dataset_report.drift import comparisons
from components.dataset_report.statistics import Statistics
from storage import row_index
from storage.model_manifest import ModelManifest
from storage.row_index import FOLDER_NAME, IndexedRow, file_name
from storage.user_errors import UserError

THRESHOLDS = dict.fromkeys(drift.MEASURES, 0.1)


def jensen_shannon(first, second):
    """In bits, of two lists of shares."""
    mean = [(p + q) / 2 for p, q in zip(first, second, strict=True)]

    def divergence(shares):
        return sum(p * math.log2(p / m) for p, m in zip(shares, mean, strict=True) if p)

    return (divergence(first) + divergence(second)) / 2


def dataset(folder, captions, rejected=0, **pictures):
    """Examples, but for their records, and their statistics; two are held out."""
    records = [
        example(caption, **{name: value(i) for name, value in pictures.items()})
        for i, caption in enumerate(captions)
    ]
    examples = examples_artifact(folder / "examples", {"train": (), "eval": ()})
    examples.set_int_custom_property("num_train", len(captions))
    examples.set_int_custom_property("num_eval", 2)
    examples.set_int_custom_property("rejected_total", rejected)
    index = folder / "examples" / FOLDER_NAME
    index.mkdir()
    lines = [
        IndexedRow(f"{i} {caption}", hashlib.sha256(str(i).encode()).hexdigest(), caption).line()
        for i, caption in enumerate(captions)
    ]
    (index / file_name("train", 0)).write_bytes(b"".join(lines))
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(folder / "statistics")
    statistics.split_names = examples.split_names
    for split, of_split in (("train", records), ("eval", records[:2])):
        path = folder / "statistics" / f"Split-{split}" / "FeatureStats.pb"
        path.parent.mkdir(parents=True)
        path.write_bytes(in_memory(of_split).SerializeToString())
    return examples, statistics


def in_memory(records):
    """TFDV's statistics, without Beam, which takes longer than all of this file."""
    batch = ExamplesToRecordBatchDecoder().DecodeBatch(records)
    options = tfdv.StatsOptions(enable_semantic_domain_stats=True)
    return stats_impl.generate_statistics_in_memory(batch, options)


FORMER = [f"a red creature with {n} horns" for n in ("one", "two", "three", "four") * 10]
SPANISH = [f"una criatura roja con {n} cuernos" for n in ("uno", "dos") * 10]


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("former"), FORMER, rejected=2)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """Half of the captions in another language; half of the pictures wider, as PNG, and black."""
    return dataset(
        tmp_path_factory.mktemp("turned"),
        FORMER[:20] + SPANISH,
        rejected=18,
        width=lambda i: 64 if i < 20 else 96,
        colour=lambda i: (200, 100, 50) if i < 20 else (0, 0, 0),
        file_format=lambda i: "JPEG" if i < 20 else "PNG",
    )


@pytest.fixture(scope="module")
def schema(tmp_path_factory, turned):
    return schema_artifact(tmp_path_factory.mktemp("schema") / "schema", turned[1])


@pytest.fixture
def validate(tmp_path, schema):
    def validate(now, before, thresholds=THRESHOLDS, fail=0, with_rows=True):
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(tmp_path / "anomalies")
        inputs = {"statistics": now[1], "schema": schema, "baseline_statistics": before[1]}
        if with_rows:
            inputs |= {"examples": now[0], "baseline_examples": before[0]}
        executor.Executor().Do(
            {key: [artifact] for key, artifact in inputs.items()},
            {"anomalies": [anomalies]},
            {
                "exclude_splits": "[]",
                "fail_on_anomalies": 0,
                "drift": json.dumps(thresholds),
                "fail_on_drift": fail,
                "code_version": "1",
            },
        )
        return anomalies

    return validate


def test_what_drifted_is_measured_told_and_an_anomaly(former, turned, validate, caplog):
    caplog.set_level(logging.INFO)
    anomalies = validate(turned, former)
    found = drift.Drift.read(anomalies.uri)
    values = {m.feature: m.value for m in found.measurements}
    # Half of the pictures are other ones; TFDV's interpolation leaves traces in empty bars.
    half = jensen_shannon([1, 0], [0.5, 0.5])
    for feature in ("image/width", "image/aspect_ratio", "image/brightness"):
        assert values[feature] == pytest.approx(half, abs=1e-3)
    assert values["image/height"] == 0
    assert values["image/format"] == pytest.approx(0.5)
    # 2 of 44 rows were set aside, now it is 18 of 60.
    assert values[drift.OUTCOME] == pytest.approx(18 / 60 - 2 / 44)
    # Six words of each caption, of which five are in each of both languages.
    was = [1 / 6] * 5 + [1 / 24] * 4 + [0] * 7
    is_now = [1 / 12] * 5 + [1 / 48] * 4 + [1 / 12] * 5 + [1 / 24] * 2
    assert values["caption/words"] == pytest.approx(jensen_shannon(was, is_now))
    assert {m.feature for m in found.drifted} == {
        "caption/num_tokens", "caption/words", "image/width", "image/aspect_ratio",
        "image/brightness", "image/format", drift.OUTCOME,
    }  # fmt: skip
    rows = [row for row in read_anomalies(anomalies) if "previous" in row.description]
    assert {row.feature for row in rows} == {m.feature for m in found.drifted}
    assert {row.split for row in rows} == {"train"}
    assert anomalies.get_int_custom_property("num_drifted") == 7
    assert anomalies.get_int_custom_property("num_anomalies") == 7
    assert "image/format 0.50" in anomalies.get_string_custom_property("drift")
    assert anomalies.get_json_value_custom_property("blessed") == {"train": 0, "eval": 1}
    assert found.outcomes == ({"kept": 42, "set aside": 18}, {"kept": 42, "set aside": 2})
    assert "drift in caption/num_tokens" in caplog.text
    assert (
        "Pictures: 40 kept, 0 added, 0 removed; 20 of those kept have other captions."
        in caplog.text
    )
    assert "7 new words, in no caption of the former dataset: 'con', 'criatura'," in caplog.text
    assert found.rows.new_words[-2:] == (("dos", 10), ("uno", 10))


def test_the_same_dataset_has_not_drifted(former, validate):
    anomalies = validate(former, former, dict.fromkeys(drift.MEASURES, 0.0), fail=1)
    found = drift.Drift.read(anomalies.uri)
    assert {m.value for m in found.measurements} == {0.0}
    assert len(found.measurements) == 8
    assert found.rows == drift.Rows(40, 0, 0, 0, (), 0)
    assert anomalies.get_string_custom_property("drift") == "none"


def test_drift_stops_the_run_if_asked_to(former, turned, validate):
    with pytest.raises(UserError, match=r"has drifted.*--fail-on-drift false") as error:
        validate(turned, former, {"format": 0.1}, fail=1)
    [row] = str(error.value).splitlines()[2:]
    assert row.split()[:2] == ["train", "image/format"]
    assert "maximum difference is" in row


def test_only_what_is_asked_for_is_compared(former, turned, validate):
    anomalies = validate(turned, former, {"format": 0.6, "rejected": 0.0}, with_rows=False)
    found = drift.Drift.read(anomalies.uri)
    # Without the rows of the former dataset, nobody knows how many were set aside.
    assert [m.feature for m in found.measurements] == ["image/format"]
    assert (found.drifted, found.rows, found.outcomes) == ((), None, None)


def test_a_comparator_of_the_users_schema_goes_first(former, turned):
    schema = schema_pb2.Schema()
    schema.feature.add(name="image/format").drift_comparator.infinity_norm.threshold = 0.9
    schema.feature.add(name="image/height").drift_comparator.jensen_shannon_divergence.threshold = 0
    measured, drifted = drift.compare(turned[1], former[1], schema, {"format": 0.1}, None)
    assert [(m.feature, m.allowed) for m in measured] == [
        ("image/format", 0.9),
        ("image/height", 0),
    ]
    assert not drifted.anomaly_info


def test_a_feature_that_fits_neither_the_schema_nor_the_former_data_is_told_once(
    former, turned, validate, schema
):
    text = tfdv.load_schema_text(f"{schema.uri}/schema.pbtxt")
    try:
        only_jpeg = tfdv.load_schema_text(f"{schema.uri}/schema.pbtxt")
        tfdv.get_domain(only_jpeg, "image/format").value[:] = ["jpeg"]
        tfdv.write_schema_text(only_jpeg, f"{schema.uri}/schema.pbtxt")
        [row] = read_anomalies(validate(turned, former, {"format": 0.1}))
    finally:
        tfdv.write_schema_text(text, f"{schema.uri}/schema.pbtxt")
    assert (row.feature, row.summary) == ("image/format", "Multiple errors")
    assert "values missing from the schema: png" in row.description
    assert "Linfty distance" in row.description


def test_the_page_shows_both_histograms(former, turned, validate):
    found = drift.Drift.read(validate(turned, former).uri)
    shown = {c.title: c for c in comparisons(found, Statistics(turned[1]), former[1])}
    assert not shown["Height"].panels
    before, now = shown["Width"].panels
    assert (before.split, before.min, before.max) == ("before", 64, 64)
    assert (now.split, now.min, now.max) == ("now", 64, 96)
    changes = {c.value: (c.before, c.now) for c in shown["Formats"].changes}
    assert changes == {"jpeg": (1, 0.5), "png": (0, 0.5)}
    assert shown["Rows set aside"].changes[0].now in (pytest.approx(0.3), pytest.approx(0.7))
    assert shown["Words"].changes[0].value in ["a", "creature", "horns", "red", "with"]
    # What drifted stands first.
    titles = [*shown]
    assert titles[-1] == "Height"


def test_damaged_former_data_stop_no_run(tmp_path, turned, validate, caplog):
    damaged = dataset(tmp_path / "damaged", FORMER)
    (tmp_path / "damaged" / "statistics" / "Split-train" / "FeatureStats.pb").write_bytes(b"\xff")
    (tmp_path / "damaged" / "examples" / FOLDER_NAME / file_name("train", 0)).write_text("{")
    anomalies = validate(turned, damaged, fail=1)
    assert drift.Drift.read(anomalies.uri).measurements == ()
    assert not anomalies.has_custom_property("drift")
    assert "The statistics of the former dataset cannot be read" in caplog.text
    assert "The rows of the former dataset cannot be read" in caplog.text
    found = drift.Drift.read(anomalies.uri)
    assert list(comparisons(found, Statistics(turned[1]), damaged[1])) == []


class Root:
    """Where runs write that cannot ask ML Metadata: their notes lie beside what they made."""

    def __init__(self, folder, schema):
        self.folder, self._schema, self._runs = folder, schema, 0

    def validate(self, now, model=None, fail=0):
        self._runs += 1
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(self.folder / f"anomalies-{self._runs}")
        executor.Executor().Do(
            {
                "statistics": [now[1]],
                "schema": [self._schema],
                "examples": [now[0]],
                "base_model": [model] if model else [],
            },
            {"anomalies": [anomalies]},
            {
                "exclude_splits": "[]",
                "fail_on_anomalies": 0,
                "drift": json.dumps(THRESHOLDS),
                "fail_on_drift": fail,
                "datasets_index": str(self.folder / "datasets_index"),
                "code_version": "1",
            },
        )
        return anomalies

    def trained(self, examples):
        """A model as the Trainer leaves it, which was trained on these examples."""
        model = standard_artifacts.Model()
        model.uri = str(self.folder / "model")
        digest = row_index.digest(rows_of(examples))
        (self.folder / "model" / "Format-Serving").mkdir(parents=True)
        manifest = ModelManifest("tiny", 64, latents={"uri": "", "rows_digest": digest})
        manifest.write(f"{model.uri}/Format-Serving")
        return model


@pytest.fixture
def root(tmp_path, schema):
    (tmp_path / "root").mkdir()
    return Root(tmp_path / "root", schema)


def test_the_former_dataset_is_found_by_its_rows_without_ml_metadata(
    root, former, turned, validate, tmp_path, schema
):
    first = dataset(root.folder / "first", FORMER, rejected=2)
    none = root.validate(first)
    assert drift.Drift.read(none.uri) is None
    assert found_statistics(none) is None
    # Other runs in between are not it.
    root.validate(dataset(root.folder / "second", FORMER[:30]))
    model = root.trained(first[0])
    anomalies = root.validate(turned, model)
    found = drift.Drift.read(anomalies.uri)
    assert found == drift.Drift.read(validate(turned, former).uri)
    assert found.rows.recaptioned == 20
    assert found.outcomes[1] == {"kept": 42, "set aside": 2}
    before = found_statistics(anomalies)
    shown = {c.title: c for c in comparisons(found, Statistics(turned[1]), before)}
    assert [panel.split for panel in shown["Width"].panels] == ["before", "now"]
    with pytest.raises(UserError, match=r"has drifted.*--fail-on-drift false"):
        root.validate(turned, model, fail=1)

    moved = Root(root.folder.rename(tmp_path / "elsewhere"), schema)
    model.uri = str(moved.folder / "model")
    assert drift.Drift.read(moved.validate(turned, model).uri) == found
    # Its rows are gone, its statistics stay.
    (moved.folder / "first" / "examples" / FOLDER_NAME).rename(moved.folder / "gone")
    cleaned = drift.Drift.read(moved.validate(turned, model).uri)
    assert (cleaned.measurements, cleaned.rows) == (found.measurements, None)


def test_of_a_former_dataset_that_nobody_noted_nothing_is_compared(root, turned, caplog):
    first = dataset(root.folder / "first", FORMER)
    model = root.trained(first[0])
    said = "no statistics of the dataset that the starting model was trained on"

    def compared():
        caplog.clear()
        anomalies = root.validate(turned, model, fail=1)
        assert said in caplog.text
        return drift.Drift.read(anomalies.uri)

    assert compared() is None
    root.validate(first)
    [note] = (root.folder / "datasets_index").glob("*.json")
    for damaged in ("{", "[]", "{}"):
        note.write_text(damaged)
        assert compared() is None
        assert "The record of the former dataset cannot be read" in caplog.text
    root.validate(first)
    (root.folder / "first" / "statistics").rename(root.folder / "gone")
    assert compared() is None
    (root.folder / "model" / "Format-Serving" / "manifest.json").unlink()
    assert compared() is None
    # What lies elsewhere is not noted: nobody would find it when the folder has been moved.
    assert len([*(root.folder / "datasets_index").iterdir()]) == 1


def test_rows_have_the_same_digest_in_whatever_files(tmp_path):
    lines = [IndexedRow(str(i), "p", "c").line() for i in range(4)]

    def digest(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, of_file in files.items():
            (folder / f"{file.replace('_', '-')}.jsonl").write_bytes(b"".join(of_file))
        return row_index.digest(str(folder))

    whole = digest("whole", train_00000=lines[:3], eval_00000=lines[3:])
    parts = digest("parts", train_00000=lines[2:3], train_00001=lines[:2], eval_00000=lines[3:])
    assert whole == parts
    assert digest("other split", train_00000=lines[:2], eval_00000=lines[2:]) != whole
    assert digest("fewer", train_00000=lines[:3]) != whole


def numbers(bars):
    part = statistics_pb2.DatasetFeatureStatistics()
    feature = part.features.add(type=statistics_pb2.FeatureNameStatistics.INT)
    feature.path.step.append("x")
    histogram = feature.num_stats.histograms.add(type=statistics_pb2.Histogram.STANDARD)
    for low, high, count in bars:
        histogram.buckets.add(low_value=low, high_value=high, sample_count=count)
    return feature


def in_same_bars(first, second):
    features = numbers(first), numbers(second)
    drift._put_into_same_bars(*features)
    return [
        [round(bar.sample_count, 6) for bar in f.num_stats.histograms[0].buckets] for f in features
    ]


def test_one_caption_that_is_longer_than_all_before_is_no_drift():
    # 10 and 30 tokens, half of each; then one of 50.
    now, before = in_same_bars([(10, 30, 50), (30, 50, 51)], [(10, 20, 50), (20, 30, 50)])
    assert now == [0, round(50 / 101, 6), round(51 / 101, 6), 0]
    # Former captions of 30 tokens are in a bar with an edge at 30: they may be on either side.
    assert before == [0, 0.5, 0.5, 0]
    # Bars of other widths, of which one lies across an edge of the other's.
    now, before = in_same_bars([(0, 8, 0), (8, 16, 0), (16, 24, 10)], [(0, 7, 0), (14, 21, 10)])
    assert now == before == [0, 0, 0, 1, 0]


def test_what_is_surely_elsewhere_stays_there():
    now, before = in_same_bars([(0, 10, 4), (10, 20, 4)], [(12, 15, 1), (15, 18, 3)])
    assert now == [0, 0.5, 0.5, 0]
    assert before == [0, 0, 1, 0]
    now, before = in_same_bars([(5, 5, 7)], [(5, 5, 2)])
    assert now == before == [0, 1, 0]
    now, before = in_same_bars([(0, 5, 1), (5, 10, 3)], [(10, 10, 2)])
    assert (now, before) == ([0, 0.25, 0.75, 0], [0, 0, 1, 0])
    now, before = in_same_bars([(5, 5, 7)], [(6, 6, 2)])
    assert sorted([now, before]) == [[0, 0, 1], [0, 1, 0]]


def test_small_datasets_may_differ_by_what_chance_does():
    first, second = numbers([(0, 1, 10), (1, 2, 10)]), numbers([(0, 1, 2), (1, 2, 2), (2, 3, 0.1)])
    allowed = drift._by_chance("jensen_shannon_divergence", first, second)
    assert allowed == pytest.approx((1 / 20 + 1 / 4) / (8 * math.log(2)))
    text = statistics_pb2.FeatureNameStatistics()
    for label, count in (("png", 1), ("jpeg", 4)):
        text.string_stats.rank_histogram.buckets.add(label=label, sample_count=count)
    assert drift._by_chance("infinity_norm", text, text) == pytest.approx(math.sqrt(0.16 * 2 / 5))


def test_rows_are_compared_by_their_pictures_and_captions(tmp_path, former):
    examples, changed = rows_of(former[0]), str(tmp_path / FOLDER_NAME)
    (tmp_path / FOLDER_NAME).mkdir()
    pictures = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(50)]
    lines = [
        IndexedRow("", pictures[0], "a green Creature, with wings").line(),
        IndexedRow("", pictures[1], FORMER[1]).line(),
        IndexedRow("", pictures[1], "another wings").line(),
        *(IndexedRow("", picture, FORMER[2]).line() for picture in pictures[42:45]),
        IndexedRow("", pictures[2], FORMER[2]).line(),
    ]
    (tmp_path / FOLDER_NAME / file_name("eval", 0)).write_bytes(b"".join(lines))
    found = drift.compare_rows(changed, examples)
    new = (("wings", 2), ("another", 1), ("green", 1))
    assert found == drift.Rows(3, 3, 37, 2, new, 3)
    assert drift.compare_rows(str(tmp_path / "gone"), examples) is None


def test_captions_are_taken_apart_as_ingest_does():
    assert drift._WORD.pattern == rows._WORD.pattern


def test_the_model_is_an_input_where_its_dataset_is_looked_up():
    def made(folder, **given):
        return CaptionValidator(
            statistics=Channel(type=standard_artifacts.ExampleStatistics),
            schema=Channel(type=standard_artifacts.Schema),
            examples=Channel(type=standard_artifacts.Examples),
            drift={"words": 0.2},
            datasets_index=folder,
            **given,
        )

    model = Channel(type=standard_artifacts.Model)
    looks = made("gs://bucket/root/datasets_index", base_model=model)
    assert {*looks.inputs} == {"statistics", "schema", "examples", "base_model"}
    assert looks.exec_properties["drift"] == '{"words": 0.2}'
    # The run that nothing is compared in notes its dataset all the same.
    notes = made("gs://bucket/root/datasets_index")
    assert {*notes.inputs} == {"statistics", "schema", "examples"}
    assert notes.exec_properties.get("drift") is None


@pytest.mark.parametrize("compares", [False, True])
def test_without_a_former_dataset_the_spec_is_as_ever(compares):
    former = Channel(type=standard_artifacts.ExampleStatistics) if compares else None
    component = CaptionValidator(
        statistics=Channel(type=standard_artifacts.ExampleStatistics),
        schema=Channel(type=standard_artifacts.Schema),
        examples=Channel(type=standard_artifacts.Examples),
        baseline_statistics=former,
        baseline_examples=Channel(type=standard_artifacts.Examples),
        drift={"words": 0.2},
        fail_on_drift=True,
    )
    settings, inputs = component.exec_properties, component.inputs
    assert settings.get("drift") == ('{"words": 0.2}' if compares else None)
    assert settings.get("fail_on_drift") == (1 if compares else None)
    wanted = {"statistics", "schema"}
    if compares:
        wanted |= {"examples", "baseline_statistics", "baseline_examples"}
    assert {*inputs} == wanted
