import dataclasses
import io
import json
import os

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from built_encoders import build_once
from PIL import Image
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.latent_gen import LatentGen, executor
from components.tfrecords import read_shard, write_shard
from storage import row_index
from storage.images import decode_image, random_position, resize_cover, to_model_range
from storage.user_errors import UserError
from trainer import presets
from trainer.data.buckets import BucketCounts, BucketLimits
from trainer.data.caption_counts import read_counts
from trainer.data.held_out import read_choosing
from trainer.data.latents import LatentsManifest, parse_latents, size_of
from trainer.presets import ENCODERS
from trainer.text.tokenizer import new_word, tokenize
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError

PRESET = small_runs.preset()
BASE_MODEL = BaseModel.locate(PRESET, 64, "random")
# Without an image, TFX would build a package of itself for the workers.
ONE_WORKER = ["--direct_num_workers=1", "--sdk_container_image=none"]
TWO_WORKERS = [
    "--direct_num_workers=2",
    "--direct_running_mode=multi_threading",
    "--sdk_container_image=none",
]


@pytest.fixture(scope="module", autouse=True)
def small_is_tiny_and_built_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "tiny": PRESET})
        build_once(patch)
        yield


def _example(index, encoded=None, repeats=None, size=None):
    height, width = size or (80, 70 + index)
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    values = {
        "id": f"id-{index:02d}".encode(),
        "image/encoded": encoded or buffer.getvalue(),
        "caption": f"a creature with {index} horns".encode(),
    }
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in values.items()
    }
    numbers = {"repeats": repeats, "image/width": size and width, "image/height": size and height}
    for name, value in numbers.items():
        if value is not None:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Example(features=tf.train.Features(feature=features))


def _examples_artifact(folder, splits):
    """Writes `splits`: for each split a list of shards, each a list of tf.Examples."""
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(list(splits))
    for split, shards in splits.items():
        uri = artifact_utils.get_split_uri([artifact], split)
        os.makedirs(uri)
        for index, shard in enumerate(shards):
            write_shard(
                os.path.join(uri, f"examples-{index:05d}-of-{len(shards):05d}.gz"),
                [example.SerializeToString() for example in shard],
                str(folder),
            )
    return artifact


def _generate(folder, examples, beam_args=ONE_WORKER, **settings):
    properties = {
        "preset": "tiny",
        "image_size": 64,
        "base_weights": "random",
        "encoders_hash": BASE_MODEL.hash(ENCODERS),
        "flip": "never",
        "crop": "centre",
        "crop_seed": 0,
        "tag_variants": 0,
        "tag_keep": 1,
        "tag_dropout": 0.0,
        "tag_seed": 0,
        "latents_index": "",
        **settings,
    }
    latents = standard_artifacts.Examples()
    latents.uri = str(folder)
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=list(beam_args))
    executor.Executor(context).Do({"examples": [examples]}, {"latents": [latents]}, properties)
    return latents


def _files(latents, split):
    folder = artifact_utils.get_split_uri([latents], split)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def _records(latents, split):
    return [record for path in _files(latents, split) for record in read_shard(path)]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Nineteen train examples in three shards, one of them empty, and two to evaluate on."""
    rows = [_example(index) for index in range(21)]
    artifact = _examples_artifact(
        tmp_path_factory.mktemp("examples"),
        {"train": [rows[:17], [], rows[17:19]], "eval": [rows[19:]]},
    )
    folder = os.path.join(artifact.uri, row_index.FOLDER_NAME)
    os.makedirs(folder)
    for split, shard, indices in (
        ("train", 0, range(17)),
        ("train", 2, (17, 18)),
        ("eval", 0, (19,)),
    ):
        with open(os.path.join(folder, row_index.file_name(split, shard)), "wb") as f:
            for index in indices:
                # Two captions of each picture.
                row = row_index.IndexedRow(f"{index}", f"{index // 2}", f"{index} horns and a nose")
                f.write(row.line())
    return artifact


@pytest.fixture(scope="module")
def latents(examples, tmp_path_factory):
    return _generate(tmp_path_factory.mktemp("latents"), examples, flip="always")


@pytest.fixture(scope="module")
def encoders():
    return BASE_MODEL.build("text_encoder"), BASE_MODEL.build("image_encoder")


def _by_hand(encoders, example, mirror=False):
    """Context, mean and log-variance of one example, encoded alone."""
    text_encoder, image_encoder = encoders
    features = example.features.feature
    tokens = tokenize([features["caption"].bytes_list.value[0].decode()])
    context = text_encoder(tokens)
    pixels = resize_cover(decode_image(features["image/encoded"].bytes_list.value[0]), 64)
    if mirror:
        pixels = pixels[:, ::-1]
    moments = np.asarray(image_encoder(to_model_range(pixels)[None]))
    return tokens[0], np.asarray(context)[0], moments[0, ..., :4], moments[0, ..., 4:]


def test_values_are_those_of_the_encoders(latents, encoders):
    records = _records(latents, "train")
    # In the first and in the filled-up second batch of the first shard, and in the last shard.
    for index in (0, 16, 18):
        parsed = parse_latents(tf.constant([records[index]]), PRESET, 64, flip=True)
        example = _example(index)
        tokens, context, mean, log_variance = _by_hand(encoders, example)
        assert parsed["id"].numpy()[0] == f"id-{index:02d}".encode()
        np.testing.assert_array_equal(parsed["tokens"].numpy()[0], tokens)
        # float16 keeps 11 bits.
        close = {"rtol": 2e-3, "atol": 2e-3}
        np.testing.assert_allclose(parsed["context"][0], context, **close)
        np.testing.assert_allclose(parsed["latent/mean"][0], mean, **close)
        np.testing.assert_allclose(parsed["latent/log_variance"][0], log_variance, **close)
        _, _, mean, log_variance = _by_hand(encoders, example, mirror=True)
        np.testing.assert_allclose(parsed["latent/mirror_mean"][0], mean, **close)
        np.testing.assert_allclose(parsed["latent/mirror_log_variance"][0], log_variance, **close)
        assert np.abs(parsed["latent/mirror_mean"] - parsed["latent/mean"]).max() > 0.02


def test_record_has_the_contract_s_shapes_and_types(latents):
    [record, _] = _records(latents, "eval")
    features = tf.train.Example.FromString(record).features.feature
    # Of what is held out the caption is kept as it was written.
    assert set(features) == {
        "id",
        "caption",
        "tokens",
        "context",
        "latent/mean",
        "latent/log_variance",
        "latent/mirror_mean",
        "latent/mirror_log_variance",
    }
    assert len(features["tokens"].int64_list.value) == 77
    assert len(features["context"].bytes_list.value[0]) == 2 * 77 * PRESET.text_encoder.width
    assert len(features["latent/mean"].bytes_list.value[0]) == 2 * 8 * 8 * 4
    trained_on = tf.train.Example.FromString(_records(latents, "train")[0]).features.feature
    assert set(trained_on) == set(features) - {"caption"}


def test_shards_and_order_are_those_of_the_examples(latents):
    names = [os.path.basename(path) for path in _files(latents, "train")]
    assert names == [f"latents-{index:05d}-of-00003.gz" for index in range(3)]
    for split, expected in {"train": range(19), "eval": range(19, 21)}.items():
        parsed = parse_latents(tf.constant(_records(latents, split)), PRESET, 64)
        assert list(parsed["id"].numpy()) == [f"id-{index:02d}".encode() for index in expected]


def test_manifest_and_artifact_say_what_made_them(latents, examples):
    encoders_hash = BASE_MODEL.hash(ENCODERS)
    assert LatentsManifest.read(latents.uri) == LatentsManifest(
        preset="tiny",
        image_size=64,
        encoders_hash=encoders_hash,
        flip=True,
        counts={"train": 19, "eval": 2},
        pictures=10,
        rows_digest=row_index.digest(os.path.join(examples.uri, row_index.FOLDER_NAME)),
    )
    # Of what is held out, no word is counted.
    words = {"horns": 19, "and": 19, "a": 19, "nose": 19, **{f"{index}": 1 for index in range(19)}}
    assert read_counts(latents.uri) == words
    assert artifact_utils.decode_split_names(latents.split_names) == ["train", "eval"]
    assert latents.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert latents.get_string_custom_property("preset") == "tiny"
    assert latents.get_string_custom_property("encoders_hash") == encoders_hash
    properties = ("image_size", "flip", "num_train", "num_eval")
    assert [latents.get_int_custom_property(name) for name in properties] == [64, 1, 19, 2]
    assert sorted(os.listdir(latents.uri)) == [
        "Split-eval",
        "Split-train",
        "captions.json",
        "choosing.json",
        "manifest.json",
    ]
    # The one that is held out is of picture 9.
    assert read_choosing(latents.uri) == {"19"}


def test_without_flip_and_with_two_workers(latents, examples, tmp_path):
    plain = _generate(tmp_path, examples, TWO_WORKERS)
    assert LatentsManifest.read(plain.uri).flip is False
    for split in ("train", "eval"):
        pairs = zip(_records(plain, split), _records(latents, split), strict=True)
        for plain_record, record in pairs:
            example = tf.train.Example.FromString(record)
            for name in ("latent/mirror_mean", "latent/mirror_log_variance"):
                del example.features.feature[name]
            assert tf.train.Example.FromString(plain_record) == example


def test_bytes_are_the_same_again(latents, examples, tmp_path):
    again = _generate(tmp_path, examples, TWO_WORKERS, flip="always")
    for split in ("train", "eval"):
        for path, other in zip(_files(latents, split), _files(again, split), strict=True):
            with open(path, "rb") as first, open(other, "rb") as second:
                assert first.read() == second.read()


def test_repeats_go_along_with_what_is_trained_on(tmp_path):
    shards = [[_example(0, repeats=10)], [_example(1, repeats=2)]]
    few = _examples_artifact(tmp_path / "e", {"train": shards, "eval": [[_example(2, repeats=7)]]})
    latents = _generate(tmp_path / "l", few)
    manifest = LatentsManifest.read(latents.uri)
    assert (manifest.counts, manifest.views) == ({"train": 2, "eval": 1}, 12)
    assert latents.get_int_custom_property("views") == 12
    records = [*_records(latents, "train"), *_records(latents, "eval")]
    said = [tf.train.Example.FromString(record).features.feature for record in records]
    assert [list(each["repeats"].int64_list.value) for each in said[:2]] == [[10], [2]]
    # What is held out is scored once.
    assert "repeats" not in said[2]


@pytest.mark.parametrize("captions", [0, 2])
def test_flips_are_off_where_captions_say_left_or_right(tmp_path, caplog, captions):
    few = _examples_artifact(tmp_path / "e", {"train": [[_example(0)]]})
    few.set_int_custom_property("captions_left_right", captions)
    with caplog.at_level("WARNING"):
        latents = _generate(tmp_path / "l", few, flip="auto")
    assert LatentsManifest.read(latents.uri).flip is (captions == 0)
    said = [r.getMessage() for r in caplog.records if "left or right" in r.getMessage()]
    assert len(said) == (captions > 0)


def test_automatic_flips_need_to_know_the_captions(examples, tmp_path):
    with pytest.raises(UserError, match="--flip always or --flip never"):
        _generate(tmp_path, examples, flip="auto")


def test_random_crop_is_that_of_the_example_and_the_seed(tmp_path, encoders):
    wide = np.random.default_rng(0).integers(0, 256, (64, 160, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    example = _example(0, buffer.getvalue())
    few = _examples_artifact(tmp_path / "e", {"train": [[example]]})
    settings = {"crop": "random", "crop_seed": 5}
    latents = _generate(tmp_path / "l", few, **settings)
    [record] = _records(latents, "train")
    left = 96 * random_position("id-00", 5)[0]
    box = (left, 0, left + 64, 64)
    cropped = Image.fromarray(wide).resize((64, 64), Image.Resampling.LANCZOS, box=box)
    moments = encoders[1](np.asarray(cropped, np.float32)[None] / 127.5 - 1, training=False)
    parsed = parse_latents(tf.constant([record]), PRESET, 64)
    np.testing.assert_allclose(parsed["latent/mean"][0], moments[0, ..., :4], atol=2e-3)


def test_broken_picture_names_its_example(tmp_path):
    broken = _examples_artifact(tmp_path / "e", {"train": [[_example(0, b"no picture")]]})
    with pytest.raises(UserError, match="example id-00 cannot be encoded"):
        _generate(tmp_path / "l", broken)


def test_other_weights_than_the_component_saw(examples, tmp_path):
    with pytest.raises(WeightsError, match="have changed since"):
        _generate(tmp_path, examples, encoders_hash="0" * 64)


def _component(**settings):
    examples = channel_utils.as_channel([standard_artifacts.Examples()])
    return LatentGen(examples=examples, base_model=BASE_MODEL, **settings)


def test_component_has_the_spec():
    properties = _component(crop_seed=3).exec_properties
    assert (properties["flip"], properties["crop"], properties["crop_seed"]) == (
        "auto",
        "centre",
        0,
    )
    assert _component(crop="random", crop_seed=3).exec_properties["crop_seed"] == 3
    assert properties["encoders_hash"] == BASE_MODEL.hash(ENCODERS)
    assert len(properties["code_version"]) == 16
    assert _component().outputs["latents"].type is standard_artifacts.Examples


@pytest.mark.parametrize("settings", [{"flip": "yes"}, {"crop": "left"}])
def test_unknown_flip_or_crop(settings):
    with pytest.raises(ValueError, match="it must be one of"):
        _component(**settings)


def _tagged_examples(folder):
    rows = []
    for index in range(5):
        example = _example(index)
        caption = f"pet {index}, red, big, old, in oil"
        example.features.feature["caption"].bytes_list.value[0] = caption.encode()
        rows.append(example)
    examples = _examples_artifact(folder, {"train": [rows[:4]], "eval": [rows[4:]]})
    examples.set_string_custom_property("caption_template", "{caption}, in oil")
    return examples


def test_several_variants_of_a_caption_are_encoded_to_train_on(tmp_path, encoders):
    examples = _tagged_examples(tmp_path / "examples")
    settings = {"tag_variants": 3, "tag_keep": 1, "tag_dropout": 0.2, "tag_seed": 7}
    latents = _generate(tmp_path / "latents", examples, **settings)
    assert LatentsManifest.read(latents.uri).caption_variants == 3
    parsed = parse_latents(tf.constant(_records(latents, "train")), PRESET, 64, caption_variants=3)
    assert parsed["tokens"].shape == (4, 3, 77)
    template = CaptionTemplate.parse("{caption}, in oil")
    for row in range(4):
        wanted = TagShuffle(3, 1, 0.2, 7).of(
            f"pet {row}, red, big, old, in oil", f"id-{row:02d}", template
        )
        tokens = tokenize(wanted)
        np.testing.assert_array_equal(parsed["tokens"][row], tokens)
        context = np.asarray(encoders[0](tokens))
        np.testing.assert_allclose(parsed["context"][row], context, rtol=2e-3, atol=2e-3)
    # What is held out stays as it was written, and the latents are the same in any case.
    held_out = parse_latents(tf.constant(_records(latents, "eval")), PRESET, 64)
    np.testing.assert_array_equal(held_out["tokens"], tokenize(["pet 4, red, big, old, in oil"]))
    plain = _generate(tmp_path / "plain", examples)
    assert _records(plain, "eval") == _records(latents, "eval")
    means = parse_latents(tf.constant(_records(plain, "train")), PRESET, 64)["latent/mean"]
    np.testing.assert_array_equal(parsed["latent/mean"], means)


def test_tags_count_in_the_cache_key_only_where_they_are_shuffled():
    without = _component(tags=TagShuffle(0, 3, 0.5, 9)).exec_properties
    assert without == _component().exec_properties
    properties = _component(tags=TagShuffle(4, 3, 0.5, 9)).exec_properties
    names = ("tag_variants", "tag_keep", "tag_dropout", "tag_seed")
    assert tuple(properties[name] for name in names) == (4, 3, 0.5, 9)


def test_a_new_word_is_encoded_as_its_initial_word(tmp_path):
    word = new_word("<creature>", "animal", 2)
    rows = [_example(index) for index in range(3)]
    shortest = "a painting in the style of <creature>"
    captions = (shortest, "my <creature>", "a photo of a <creature>")
    for row, caption in zip(rows, captions, strict=True):
        row.features.feature["caption"].bytes_list.value[:] = [caption.encode()]
    examples = _examples_artifact(tmp_path / "examples", {"train": [rows[:2]], "eval": [rows[2:]]})
    words = WordCaptions(word, "style")
    folder = tmp_path / "examples" / row_index.FOLDER_NAME
    folder.mkdir()
    with open(folder / row_index.file_name("train", 0), "wb") as f:
        for caption in captions[:2]:
            f.write(row_index.IndexedRow("id", "picture", caption).line())
    latents = _generate(tmp_path / "latents", examples, word_captions=words.to_json())
    manifest = LatentsManifest.read(latents.uri)
    assert (manifest.new_word, manifest.caption_variants) == (word, 19)
    assert "word" not in LatentsManifest("tiny", 64, "", False, {}).fields
    own, held_out = (
        parse_latents(tf.constant(_records(latents, split)), PRESET, 64, caption_variants=variants)
        for split, variants in (("train", 19), ("eval", 1))
    )
    for row, variants in enumerate((words.of(shortest), ["my <creature>"] * 19)):
        np.testing.assert_array_equal(own["tokens"][row], tokenize(variants, word=word))
    np.testing.assert_array_equal(held_out["tokens"], tokenize([captions[2]], word=word))
    initial = ["a photo of a animal animal"]
    context = BASE_MODEL.build("text_encoder")(tokenize(initial)).numpy()
    np.testing.assert_allclose(held_out["context"], context, atol=2e-3)


LIMITS = BucketLimits(step=32, max_pixels=4096, min_side=32, max_side=128)
SIZES = [(90, 30), (50, 50), (64, 64), (95, 35), (1, 40)]


@pytest.fixture(scope="module")
def of_shapes(tmp_path_factory):
    """Five pictures, one of them held out; the last one is wider than any bucket."""
    rows = [_example(index, size=size) for index, size in enumerate(SIZES)]
    rows[0] = _example(0, size=SIZES[0], repeats=3)
    splits = {"train": [rows[:2], [rows[2], rows[4]]], "eval": [[rows[3]]]}
    return _examples_artifact(tmp_path_factory.mktemp("shapes"), splits)


def test_pictures_in_buckets_keep_their_shape(of_shapes, tmp_path, encoders, caplog):
    caplog.set_level("INFO")
    limits = json.dumps(dataclasses.asdict(LIMITS))
    latents = _generate(tmp_path, of_shapes, buckets=limits)
    expected = [(96, 32), (64, 64), (64, 64), (32, 128)]
    records = _records(latents, "train")
    assert [size_of(record, 0) for record in records] == expected
    for record, size, at in zip(records, expected, (0, 1, 2, 4), strict=True):
        encoded = _example(at, size=SIZES[at]).features.feature["image/encoded"]
        pixels = resize_cover(decode_image(encoded.bytes_list.value[0]), size)
        moments = np.asarray(encoders[1](to_model_range(pixels)[None]))
        parsed = parse_latents(tf.constant([record]), PRESET, size)
        np.testing.assert_allclose(parsed["latent/mean"], moments[..., :4], rtol=2e-3, atol=2e-3)
    manifest = LatentsManifest.read(latents.uri)
    assert manifest.buckets == [
        BucketCounts(32, 96, {"train": 1, "eval": 1}, 3),
        BucketCounts(64, 64, {"train": 2, "eval": 0}, 2),
        BucketCounts(128, 32, {"train": 1, "eval": 0}, 1),
    ]
    assert manifest.views == 6
    assert latents.get_int_custom_property("buckets") == 3
    assert "at 3 sizes, of about 64 x 64 pixels" in caplog.text
    assert "No picture of 64 x 64, 128 x 32 pixels is held out" in caplog.text
