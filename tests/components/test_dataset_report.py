"""The page about a small dataset, with TFDV's real statistics of hostile captions."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from browser import PHONE, WIDE, browser, findings_of_file, show
from captioned_examples import (
    example,
    examples_artifact,
    schema_artifact,
    statistics_artifact,
)
from markupsafe import Markup
from PIL import Image
from tfx.types import Channel, standard_artifacts

from components import DatasetReport as ReportArtifact
from components import RejectedRows
from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.groups_file import GROUPS_NAME, GroupedPicture, write_groups
from components.caption_example_gen.word_captions import WordCaptions
from components.caption_validator import executor as caption_validator
from components.dataset_report import DatasetReport, charts, executor, samples
from components.dataset_report.buckets import bucket_rows
from components.dataset_report.reconstructions import (
    AUTOENCODER,
    num_pictures,
    psnr,
    reconstruct,
)
from components.dataset_report.statistics import CAPTION_LENGTH, PICTURE_MEASURES, Statistics
from components.pages.page import clip
from trainer.data.buckets import BucketLimits
from trainer.presets import get_preset
from trainer.text.tokenizer import new_word, token_count
from trainer.weights.base_model import BaseModel

LONG = " ".join(["elephant"] * 100)
HOSTILE = [
    "<script>alert('gotcha')</script> creature",
    '" onerror="alert(1)" & \'more\' </title></style><img src=x>',
    "a 🦄 creature with \u202ereversed\u202c text",
    "مخلوق أحمر صغير",
    "{{ 7 * 7 }} {% raise %} \x00\x07\x85 creature",
    "w" * 300,
]
TRAIN = [
    *(example(caption, colour=(10, 200, 30)) for caption in HOSTILE),
    *(example(f"red creature number {i}", width=64 + 8 * (i % 3)) for i in range(20)),
    example(LONG, width=400, height=100, colour=(255, 255, 255), file_format="PNG"),
]
TAGGED = [
    "sks, dog, red, outdoors, grass, in the style of sks",
    "sks, <i>cat</i>, blue, indoors, sofa, in the style of sks",
]
EVAL = [example(f"blue creature {i}", colour=(0, 0, 255 - 60 * i)) for i in range(4)]
REJECTS = [
    *(
        {
            "reason": "duplicate",
            "detail": "same picture and caption as b.parquet row 1",
            "origin": "b.parquet",
            "row": i,
            "caption": "again",
        }
        for i in range(70)
    ),
    {
        "reason": "image_undecodable",
        "detail": "the picture cannot be decoded: <b>bad</b>",
        "origin": "<i>c</i>\udcff.parquet",
        "row": 3,
        "caption": None,
    },
]

RANDOM = {
    "preset": "tiny",
    "image_size": 64,
    "base_weights": "random",
    "autoencoder_hash": "random",
}


SHIPPED = BaseModel.locate(get_preset("tiny"), 64, "default")


class Page(html.parser.HTMLParser):
    """The elements of a page, and its text."""

    VOID = ("meta", "img", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.unbalanced: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        self.unbalanced += self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    def sources(self, tag: str) -> list[str]:
        return [str(attributes["src"]) for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    examples = examples_artifact(folder / "examples", {"train": TRAIN, "eval": EVAL})
    for name, text in (
        ("dataset", 'hf://datasets/<b>"some"</b>/one@0123'),
        ("dataset_revision", "0123"),
        ("dataset_kind", "parquet"),
        ("image_column", "image"),
        ("caption_column", "text"),
    ):
        examples.set_string_custom_property(name, text)
    examples.set_int_custom_property("captions_truncated", 1)
    examples.set_int_custom_property("captions_left_right", 3)
    examples.set_int_custom_property("images_animated", 2)
    rejects = RejectedRows()
    rejects.uri = str(folder / "rejects")
    (folder / "rejects").mkdir()
    (folder / "rejects" / "rejects.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in REJECTS)
    )
    rejects.set_int_custom_property("rejected_total", 71)
    rejects.set_int_custom_property("rejected_image_undecodable", 1)
    rejects.set_int_custom_property("rejected_duplicate", 70)
    statistics = statistics_artifact(folder / "statistics", examples)
    schema = schema_artifact(folder / "schema", statistics)
    return {
        "examples": examples,
        "statistics": statistics,
        "schema": schema,
        "anomalies": validated(folder / "anomalies", statistics, schema),
        "rejects": rejects,
    }


def validated(folder, statistics, schema):
    anomalies = standard_artifacts.ExampleAnomalies()
    anomalies.uri = str(folder)
    caption_validator.Executor().Do(
        {"statistics": [statistics], "schema": [schema]},
        {"anomalies": [anomalies]},
        {"exclude_splits": "[]", "fail_on_anomalies": 0, "code_version": "1"},
    )
    return anomalies


def report(folder, artifacts, base_model=RANDOM, **properties) -> str:
    output = ReportArtifact()
    output.uri = str(folder)
    executor.Executor().Do(
        {name: [artifact] for name, artifact in artifacts.items()},
        {"report": [output]},
        {**base_model, **properties, "code_version": "1"},
    )
    [path] = folder.iterdir()
    assert path.name == "dataset.html"
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory, artifacts):
    return report(tmp_path_factory.mktemp("page") / "report", artifacts)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


@pytest.fixture(scope="module")
def statistics(artifacts):
    return Statistics(artifacts["statistics"])


def test_the_page_is_one_file_that_runs_and_fetches_nothing(source, page):
    assert page.unbalanced == []
    assert not {"script", "iframe", "object", "link", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not {"href", "srcset", "action"} & set(attributes)
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.sources("img"))
    assert "url(" not in source
    assert "@import" not in source
    policy = next(a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])
    assert "prefers-color-scheme: dark" in source


def test_a_screen_reader_finds_nothing_amiss(tmp_path, source):
    file = tmp_path / "dataset.html"
    file.write_text(source)
    with browser() as chromium:
        for width in (PHONE, WIDE):
            shown = show(chromium, file, width, "light")
            assert (shown.overflow, shown.cut, shown.nameless) == (0, [], 0)
        assert findings_of_file(chromium, file) == []


def test_captions_are_shown_as_they_are(page):
    for caption in HOSTILE[:4]:
        assert caption in page.words
    assert "{{ 7 * 7 }} {% raise %} ␀␇\ufffd creature" in page.words
    assert 'hf://datasets/<b>"some"</b>/one@0123' in page.words
    assert "<i>c</i>\ufffd.parquet" in page.words
    assert "the picture cannot be decoded: <b>bad</b>" in page.words


def test_the_head_has_the_facts(page):
    for fact in (
        "Rows, train 27 87.1% of those kept",
        "Rows, eval 4 12.9% of those kept",
        "Rejected rows 71 69.61% of all rows",
        "Captions cut 1 longer than 77 tokens",
        "Anomalies 0 against the schema",
        "Revision 0123 Kind parquet Pictures from image Captions from text",
        "3 captions say left or right",
        "2 are animated",
        "None: every split fits the schema.",
    ):
        assert fact in page.words


def test_sample_pictures_are_small_and_the_first_of_each_split(page):
    pictures = []
    for src in page.sources("img"):
        with Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 160
            pictures.append(image.convert("RGB").getpixel((5, 5)))
    # Twelve would be eval's part, which has only four.
    assert len(pictures) == 12 + 4
    first_of_train = [(10, 200, 30)] * 6 + [(200, 100, 50)] * 6
    expected_pictures = first_of_train + [(0, 0, 255 - 60 * i) for i in range(4)]
    for found, expected in zip(pictures, expected_pictures, strict=True):
        assert found == pytest.approx(expected, abs=4)


def test_the_longest_captions_part_that_is_cut_is_marked(source):
    [(kept, cut)] = re.findall(r'auto">([^<]*)<del>([^<]*)</del>', source)
    # Of 77 tokens, two are the start and the end.
    assert kept == " ".join(["elephant"] * 75)
    assert cut == " elephant" * 25
    assert "102 tokens" in source


def test_rejects_show_every_reason(page):
    assert "reason rows duplicate 70 image_undecodable 1 all 71" in page.words
    assert "50 of 71 rows, the first ones of every reason" in page.words
    assert page.words.count("same picture and caption as b.parquet row 1") == 49
    assert "70 rows had the same picture and the same caption" in page.words


def test_numbers_are_those_of_tfdv(statistics):
    assert statistics.rows == {"train": 27, "eval": 4}
    train, evaluation = statistics.panels(CAPTION_LENGTH)
    counts = [token_count(f"red creature number {i}") for i in range(20)]
    counts += [token_count(caption) for caption in [*HOSTILE, LONG]]
    assert (train.min, train.max) == (min(counts), max(counts))
    assert train.mean == pytest.approx(sum(counts) / 27)
    assert (evaluation.split, evaluation.min, evaluation.median) == ("eval", 5, 5)
    ratio = next(m for m in PICTURE_MEASURES if m.feature == "image/aspect_ratio")
    assert statistics.panels(ratio)[0].max == 4.0
    brightness = next(m for m in PICTURE_MEASURES if m.feature == "image/brightness")
    assert statistics.panels(brightness)[0].max == pytest.approx(1.0)
    assert {
        split: {count.value: (count.count, round(count.fraction, 3)) for count in counts}
        for split, counts in statistics.formats().items()
    } == {"train": {"jpeg": (26, 0.963), "png": (1, 0.037)}, "eval": {"jpeg": (4, 1.0)}}


def test_words_are_counted(statistics):
    train, evaluation = statistics.vocabularies()
    assert [(word.value, word.count) for word in train.top[:3]] == [
        ("elephant", 100),
        ("creature", 23),
        ("red", 20),
    ]
    assert train.top[0].fraction == pytest.approx(100 / train.total)
    assert (evaluation.distinct, evaluation.total) == (6, 12)


def test_pictures_with_several_captions_are_counted(statistics):
    train, evaluation = statistics.pictures()
    # Three sizes of one colour, the hostile captions' and the white one.
    assert (train.rows, train.distinct, train.repeated, train.most) == (27, 5, 4, 7)
    assert not train.repeated_at_least
    assert (evaluation.distinct, evaluation.repeated, evaluation.most) == (4, 0, 1)


def test_the_same_input_gives_the_same_page(tmp_path, artifacts, source):
    assert report(tmp_path / "again", artifacts) == source


def test_anomalies_are_told(tmp_path, artifacts):
    schema = tfdv.load_schema_text(f"{artifacts['schema'].uri}/schema.pbtxt")
    tfdv.get_domain(schema, "image/format").value.remove("png")
    stricter = standard_artifacts.Schema()
    stricter.uri = str(tmp_path / "schema")
    (tmp_path / "schema").mkdir()
    tfdv.write_schema_text(schema, f"{stricter.uri}/schema.pbtxt")
    anomalies = validated(tmp_path / "anomalies", artifacts["statistics"], stricter)
    no_rejects = RejectedRows()
    no_rejects.uri = str(tmp_path / "rejects")
    (tmp_path / "rejects").mkdir()
    (tmp_path / "rejects" / "rejects.jsonl").write_text("")
    no_rejects.set_int_custom_property("rejected_total", 0)
    changed = {"schema": stricter, "anomalies": anomalies, "rejects": no_rejects}
    page = Page(report(tmp_path / "report", {**artifacts, **changed}))
    assert page.unbalanced == []
    assert "Anomalies 1 against the schema" in page.words
    assert "train image/format Unexpected string values Examples contain" in page.words
    assert "None: every row is used." in page.words
    assert "Rejected rows 0 Captions" in page.words


def test_what_the_statistics_lack_is_left_out(tmp_path, artifacts):
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(tmp_path / "statistics")
    statistics.split_names = artifacts["statistics"].split_names
    for split in ("train", "eval"):
        path = f"Split-{split}/FeatureStats.pb"
        found = tfdv.load_stats_binary(f"{artifacts['statistics'].uri}/{path}")
        [dataset] = found.datasets
        kept = [f for f in dataset.features if f.path.step[0] in ("caption", "image/width")]
        del dataset.features[:]
        dataset.features.extend(kept)
        (tmp_path / "statistics" / path).parent.mkdir(parents=True)
        (tmp_path / "statistics" / path).write_bytes(found.SerializeToString())
    page = Page(report(tmp_path / "report", {**artifacts, "statistics": statistics}))
    assert page.unbalanced == []
    assert len(page.sources("img")) == 16
    assert "Width, pixels As decoded" in page.words
    assert "image/brightness float yes all rows all rows" in page.words
    assert "Mean luma" not in page.words


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("a " * 100, "a " * 74 + "a"),
        ("elephant\n\t" * 80, "elephant\n\t" * 74 + "elephant"),
        # A sign is a token: 40 in the first word, 35 of the second.
        ("1" * 40 + " " + "2" * 60, "1" * 40 + " " + "2" * 35),
        ("7" * 200, "7" * 75),
    ],
)
def test_captions_are_parted_where_the_encoder_stops(caption, kept):
    assert samples.split_caption(caption) == (kept, caption[len(kept) :])


def test_nothing_of_an_endless_caption_is_lost():
    for caption in ("x" * 50_000, " " * 5_000 + "a " * 100, "&amp;" * 3_000, "你好" * 900):
        kept, cut = samples.split_caption(caption)
        assert kept + cut == caption
        assert token_count(kept) <= 77


def test_reading_stops_when_enough_is_found():
    def records():
        yield from (example(f"creature {i}") for i in range(3))
        yield example(LONG)
        raise AssertionError("read on")

    found, cut = samples.collect("train", records(), 2, 1)
    assert [sample.caption for sample in found] == ["creature 0", "creature 1"]
    assert [caption.num_tokens for caption in cut] == [102]
    found, cut = samples.collect("train", records(), 3, 0)
    assert (len(found), cut) == (3, [])


def test_every_reason_gets_its_turn():
    rows = [
        executor.Reject(reason, "", "", str(i), None)
        for i, reason in enumerate(["a"] * 9 + ["b"] * 2 + ["c"])
    ]
    chosen = executor.first_of_each_reason(rows, 6, ["a", "b"])
    assert [(row.reason, row.row) for row in chosen] == [
        ("a", "0"), ("a", "1"), ("a", "2"), ("b", "9"), ("b", "10"), ("c", "11"),
    ]  # fmt: skip
    assert len(executor.first_of_each_reason(rows, 100, ["a", "b"])) == 12
    assert executor.first_of_each_reason([], 5, []) == []


def test_long_text_says_how_much_is_left_out():
    assert clip("abc", 3) == "abc"
    assert clip("a" * 2003, 3) == "aaa… (+2,000 characters)"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.31, 0.52, [0.35, 0.4, 0.45, 0.5]),
        (3, 9, [4, 6, 8]),
        (64, 12000, [5000, 10000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == expected


def bars(svg: Markup) -> list[tuple[float, float]]:
    found = re.findall(r'class="bar" x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', svg)
    return [(float(x), float(height)) for x, height in found]


def test_a_histogram_has_bars_in_proportion():
    bins = [charts.Bin(0, 5, 10), charts.Bin(5, 10, 0.02), charts.Bin(10, 15, 30)]
    svg = charts.histogram(bins, 0, 15, "a <chart>", charts.Mark(12, "limit"))
    (left, low), (right, high) = bars(svg)
    assert left < right
    assert high == pytest.approx(3 * low, rel=0.01)
    assert 'aria-label="a &lt;chart&gt;"' in svg
    assert "highest bar: 75%" in svg
    assert '<line class="mark"' in svg
    assert "about 30 (75.0%)" in svg


@pytest.mark.parametrize("value", [0, 4, 11, 15, 77])
def test_the_labels_over_a_histogram_do_not_meet(value):
    svg = charts.histogram([charts.Bin(0, 15, 1)], 0, 15, "chart", charts.Mark(value, "limit 77"))
    pattern = r'<text class="\w+" x="([\d.]+)" y="12" text-anchor="(\w+)">([^<]*)<'
    labels = re.findall(pattern, svg)
    assert len(labels) == 2
    spans = []
    for place, anchor, words in labels:
        width = 7 * len(words)
        left = float(place) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0
        assert left + width <= 360
        spans.append((left, left + width))
    (_, first_end), (second_start, _) = sorted(spans)
    assert first_end < second_start


def test_a_mark_beyond_the_axis_is_said_at_the_side():
    svg = charts.histogram([charts.Bin(0, 5, 1)], 0, 5, "chart", charts.Mark(77, "limit 77"))
    assert "limit 77 →" in svg
    assert '<line class="mark"' not in svg


@pytest.mark.parametrize("bins", [[], [charts.Bin(256, 256, 40)]])
def test_a_histogram_of_one_value_or_none_is_drawn(bins):
    svg = charts.histogram(bins, 256, 256, "chart")
    assert len(bars(svg)) == len(bins)
    assert "nan" not in svg
    assert "256" in svg


def test_held_out_pictures_are_shown_as_the_autoencoder_gives_them_back(tmp_path, artifacts):
    properties = {
        "preset": "tiny",
        "image_size": 64,
        "base_weights": SHIPPED.base_weights,
        "autoencoder_hash": SHIPPED.hash(AUTOENCODER),
    }
    page = Page(report(tmp_path / "report", artifacts, properties))
    row = page.sources("img")[-2 * len(EVAL) :]
    originals, restored = (
        [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in some]
        for some in (row[::2], row[1::2])
    )
    for original, other in zip(originals, restored, strict=True):
        assert original.shape == other.shape == (64, 64, 3)
        error = np.mean((original.astype(float) - other) ** 2)
        assert error > 0
        assert f"{10 * np.log10(65025 / error):.1f} dB" in page.words


def test_the_encoder_and_the_decoder_are_the_base_weights(tmp_path):
    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    record = tf.train.Example.FromString(example("a ring"))
    record.features.feature["image/encoded"].bytes_list.value[0] = encoded.getvalue()
    [found] = reconstruct(SHIPPED, [record.SerializeToString()])
    moments = SHIPPED.build("image_encoder")(np.asarray(picture)[None] / 127.5 - 1.0)
    decoded = SHIPPED.build("decoder")(0.18215 * moments[..., :4])[0]
    expected = np.clip(np.round(decoded * 127.5 + 127.5), 0, 255).astype(np.uint8)
    restored = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.restored.split(",")[1]))))
    assert np.abs(restored.astype(int) - expected).max() <= 1
    assert found.psnr == pytest.approx(psnr(np.asarray(picture), expected), abs=0.1)


def test_fewer_large_pictures_are_shown_than_small_ones():
    assert [num_pictures(size) for size in (64, 128, 256, 512, 1024, 2048)] == [6, 6, 6, 4, 1, 1]


def test_equal_pictures_have_no_noise():
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))


def made_component(tags=None):
    return DatasetReport(
        examples=Channel(type=standard_artifacts.Examples),
        statistics=Channel(type=standard_artifacts.ExampleStatistics),
        schema=Channel(type=standard_artifacts.Schema),
        anomalies=Channel(type=standard_artifacts.ExampleAnomalies),
        rejects=Channel(type=RejectedRows),
        base_model=SHIPPED,
        tags=tags,
    )


def test_the_component_makes_its_spec():
    component = made_component()
    assert component.exec_properties["autoencoder_hash"] == SHIPPED.hash(AUTOENCODER)
    assert component.exec_properties["autoencoder_hash"] != SHIPPED.hash()
    assert component.outputs["report"].type is ReportArtifact
    assert len(component.exec_properties["code_version"]) == 16


def _members(*splits):
    return [
        GroupedPicture(f"{i}", f"<{i}>.jpg", i, 10 + i, 20, split, "aGk=")
        for i, split in enumerate(splits)
    ]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (None, "Not looked for (dataset.near_duplicates is ignore)."),
        ([], "None: no two pictures are the same in another size, quality or cut."),
    ],
)
def test_no_near_duplicates_are_told(tmp_path, artifacts, groups, said):
    path = os.path.join(artifacts["examples"].uri, GROUPS_NAME)
    if groups is not None:
        write_groups(groups, path)
    try:
        assert said in Page(report(tmp_path / "report", artifacts)).words
    finally:
        if groups is not None:
            os.remove(path)


def test_near_duplicates_are_counted_and_shown_side_by_side(tmp_path, artifacts):
    hidden = dataclasses.replace(_members("eval")[0], thumbnail="")
    path = os.path.join(artifacts["examples"].uri, GROUPS_NAME)
    write_groups([_members("eval", "eval"), [*_members("train", ""), hidden], [hidden] * 2], path)
    try:
        page = Page(report(tmp_path / "report", artifacts))
    finally:
        os.remove(path)
    assert "7 pictures are nearly the same as another, in 3 groups" in page.words
    assert "The first 2 groups are shown." in page.words
    assert page.sources("img").count("data:image/jpeg;base64,aGk=") == 4
    assert "20, <0>.jpg row 0" in page.words
    assert "20, <1>.jpg row 1 and 1 more" in page.words
    assert not page.unbalanced


def test_captions_are_shown_as_trained_on(tmp_path, artifacts, page):
    assert "as trained on" not in page.words
    tags = TagShuffle(variants=6, keep=1, dropout=0.25, seed=3)
    captions = {"train": ["a creature in the style of sks", *TAGGED], "eval": ["sks, held, out"]}
    examples = examples_artifact(
        tmp_path / "examples", {split: map(example, texts) for split, texts in captions.items()}
    )
    examples.set_string_custom_property("dataset", "tags")
    examples.set_string_custom_property("caption_template", "{caption}, in the style of sks")
    varied = Page(
        report(
            tmp_path / "report",
            {**artifacts, "examples": examples},
            tags=json.dumps(dataclasses.asdict(tags)),
        )
    )
    assert "of 6 variants of each, training draws one at every step." in varied.words
    assert "The first tag stays in its place." in varied.words
    assert "Every other tag is left out of a variant with probability 0.25." in varied.words
    template = CaptionTemplate.of(examples)
    shown = varied.words[varied.words.index("Held-out captions are") :]
    for record in map(example, TAGGED):
        features = tf.train.Example.FromString(record).features.feature
        caption, example_id = (
            features[name].bytes_list.value[0].decode() for name in ("caption", "id")
        )
        # What LatentGen encodes, and not the caption itself.
        expected = list(dict.fromkeys(tags.of(caption, example_id, template)))
        assert " ".join(expected[:4]) in shown
        assert all(variant.endswith(", in the style of sks") for variant in expected)
    assert "held, out" not in shown
    assert not varied.unbalanced


def test_a_new_word_and_its_sentences_are_shown(tmp_path, artifacts, page):
    assert "A new word" not in page.words
    word = new_word("<creature>", "animal", 3)
    shown = {
        templates: Page(
            report(
                tmp_path / (templates or "none"),
                artifacts,
                word_captions=WordCaptions(word, templates).to_json(),
            )
        ).words
        for templates in ("object", "")
    }
    for words in shown.values():
        assert "<creature> is learned, as 3 vectors that begin as that of animal" in words
        assert "it counts as 3 of 77 tokens." in words
    assert "a photo of a <creature> a rendering of a <creature>" in shown["object"]
    assert "Captions that lack it are set aside." in shown[""]


def test_the_spec_says_nothing_of_tags_that_are_not_shuffled():
    def properties(tags):
        return made_component(tags).exec_properties

    assert properties(None)["tags"] is None
    assert properties(TagShuffle(keep=3)) == properties(None)
    assert json.loads(properties(TagShuffle(4, 2, 0.5, 1))["tags"]) == {
        "variants": 4,
        "keep": 2,
        "dropout": 0.5,
        "seed": 1,
    }


def test_buckets_and_what_is_cropped_by_hand(tmp_path):
    limits = BucketLimits(step=32, max_pixels=4096, min_side=32, max_side=128)
    shapes = {"train": [(64, 64), (90, 30), (120, 30), (60, 40)], "eval": [(30, 100)]}
    records = {
        split: [example("a dog", width=width, height=height) for width, height in sizes]
        for split, sizes in shapes.items()
    }
    # The last one is 1.5 wide: a square is nearer than 3 is.
    rows = list(bucket_rows(records, limits))
    assert [(row.name, row.counts) for row in rows] == [
        ("32 x 96", {"eval": 1}),
        ("64 x 64", {"train": 2}),
        ("96 x 32", {"train": 1}),
        ("128 x 32", {"train": 1}),
        ("all", {"train": 4, "eval": 1}),
    ]
    expected = [(0.1, 0.1, 0.7), (1 / 6, 1 / 3, 1 / 6), (0, 0, 2 / 3), (0, 0, 0.75)]
    expected.append(((0.1 + 1 / 3) / 5, 1 / 3, (0.7 + 1 / 3 + 2 / 3 + 0.75) / 5))
    found = [(row.cropped, row.most_cropped, row.cropped_to_square) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_page_shows_buckets_where_there_are_any(tmp_path, artifacts, page):
    assert "Buckets" not in page.words
    assert "Pictures are cropped to a square" in page.words
    limits = {"step": 32, "max_pixels": 4096, "min_side": 32, "max_side": 128}
    shown = Page(report(tmp_path / "report", artifacts, buckets=json.dumps(limits)))
    assert shown.unbalanced == []
    assert "128 \u00d7 32 1 0 0.0% 0.0% 75.0%" in shown.words
    assert f"64 \u00d7 64 {len(TRAIN) - 1} {len(EVAL)}" in shown.words
    assert "cropped to a square:" not in shown.words
