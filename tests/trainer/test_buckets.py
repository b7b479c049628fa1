import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small_runs
import tensorflow as tf

from trainer.data.buckets import (
    Bucket,
    BucketCounts,
    BucketLimits,
    ImpossibleLimitError,
    bucket_order,
    cropped,
)
from trainer.data.held_out import held_out_pictures
from trainer.data.latents import (
    LatentsManifest,
    make_latent_example,
    parse_latents,
    size_of,
    training_batches,
)
from trainer.networks import build_network
from trainer.networks.any_size import call_at_any_size
from trainer.presets import get_preset
from trainer.training.evaluations import ScoredPictures

PRESET = small_runs.preset()
TALL, SQUARE, WIDE = Bucket(64, 128), Bucket(64, 64), Bucket(128, 64)
# Pictures of each bucket; three are fewer than a batch.
HELD = {TALL: 7, SQUARE: 9, WIDE: 3}
BUCKETS = [BucketCounts(*b.size[::-1], {"train": n}, n) for b, n in HELD.items()]
BATCH = 4


def names(limits: BucketLimits) -> list[str]:
    return [bucket.name for bucket in limits.buckets]


def test_buckets_of_the_presets_by_hand() -> None:
    tiny = BucketLimits.of(get_preset("tiny"), 128)
    assert tiny == BucketLimits(step=32, max_pixels=16_384, min_side=64, max_side=256)
    # 16,384 pixels leave 256 beside 64, 170 beside 96, 85 beside 192 and 73 beside 224.
    tall = ["64 x 256", "64 x 224", "64 x 192", "96 x 160"]
    wide = ["160 x 96", "192 x 64", "224 x 64", "256 x 64"]
    assert names(tiny) == [*tall, "128 x 128", *wide]
    full = BucketLimits.of(get_preset("sd-v1-4"), 512)
    assert full == BucketLimits(step=64, max_pixels=512 * 512, min_side=256, max_side=1024)
    assert {"384 x 640", "448 x 576", "512 x 512", "768 x 320", "1024 x 256"} <= {*names(full)}
    assert all(b.width * b.height <= 512 * 512 for b in full.buckets)


def test_a_picture_goes_to_the_nearest_shape() -> None:
    limits = BucketLimits.of(get_preset("tiny"), 128)
    for (width, height), name in {
        (1000, 1000): "128 x 128",
        (10, 40): "64 x 256",
        (3000, 2000): "160 x 96",  # 1.5 to 1.67: a factor of 1.11; to 1: 1.5
        (1200, 1000): "128 x 128",
        (100, 1000): "64 x 256",  # the most extreme there is
        (700, 200): "224 x 64",
    }.items():
        assert limits.bucket_of(width, height).name == name
        mirrored = limits.bucket_of(height, width)
        assert f"{mirrored.height} x {mirrored.width}" == name


def test_a_tie_goes_to_more_pixels_and_then_to_the_taller() -> None:
    # 2 and 1/2 differ from a square by one factor; the square is no bucket: 64 * 64 is too small.
    limits = BucketLimits(step=64, max_pixels=64 * 128, min_side=64, max_side=128)
    assert names(limits) == ["64 x 128", "128 x 64"]
    assert limits.bucket_of(77, 77) == TALL
    # Shapes 3 and 4 are as far from 2 * sqrt(3), which no picture has, but for rounding.
    wider = BucketLimits(step=32, max_pixels=16_384, min_side=64, max_side=256)
    assert wider.bucket_of(12 * 7, 12 * 2).name == "224 x 64"


@pytest.mark.parametrize(
    ("size", "bucket", "expected"),
    [
        ((64, 128), TALL, 0.0),
        ((100, 100), TALL, 0.5),
        ((300, 100), WIDE, 1 / 3),
        ((150, 100), WIDE, 0.25),
        ((150, 100), SQUARE, 1 / 3),
    ],
)
def test_what_is_cropped_by_hand(size, bucket: Bucket, expected: float) -> None:
    assert cropped(*size, bucket) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"step": 16}, "step", "multiples of 32"),
        ({"min_side": 48}, "min_side", "multiple of 32"),
        ({"max_side": 100}, "max_side", "multiple of 32"),
        ({"min_side": 128, "max_side": 96}, "max_side", "at least the shortest side, 128"),
        ({"min_side": 128, "max_pixels": 16_000}, "max_pixels", "128, has 16,384 pixels"),
    ],
)
def test_limits_that_cannot_be(given, name: str, said: str) -> None:
    with pytest.raises(ImpossibleLimitError, match=said) as error:
        BucketLimits.of(get_preset("tiny"), 128, **given)
    assert error.value.name == name


def test_every_bucket_comes_up_as_often_as_its_pictures_fill_batches() -> None:
    views, steps = [7, 9, 3, 1], 500
    order = list(itertools.islice(bucket_order(views, BATCH, seed=5), steps))
    counts = Counter(order)
    for place, count in enumerate(views):
        # Two for where it begins and where it ends.
        assert abs(counts[place] - steps * count / sum(views)) <= 2
    assert order == list(itertools.islice(bucket_order(views, BATCH, seed=5), steps))
    assert order != list(itertools.islice(bucket_order(views, BATCH, seed=6), steps))
    # They alternate.
    assert max(len(list(run)) for _, run in itertools.groupby(order)) < 12


def test_a_bucket_of_a_few_pictures_is_in_as_many_short_trainings_as_is_its_due() -> None:
    # A batch in eight epochs; in trainings of two, a quarter.
    firsts = [
        1 in itertools.islice(bucket_order([64, 4], 32, seed), 4)  # two epochs, 4.25 steps
        for seed in range(400)
    ]
    assert 0.17 < np.mean(firsts) < 0.33


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Pictures of three sizes, in no order; ids say which."""
    path = tmp_path_factory.mktemp("latents") / "latents.gz"
    rng = np.random.default_rng(0)
    pictures = [(bucket, n) for bucket, count in HELD.items() for n in range(count)]
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for place in rng.permutation(len(pictures)):
            writer.write(record(*pictures[place]))
    return path


def record(bucket: Bucket, number: int) -> bytes:
    rng = np.random.default_rng([*bucket.size, number])
    mean, log_variance = rng.standard_normal((2, *PRESET.latent_shape(bucket.size)))
    return make_latent_example(
        example_id=f"{bucket.name}/{number}",
        tokens=rng.integers(0, 49408, 77),
        context=rng.standard_normal((77, 8)),
        mean=mean,
        log_variance=log_variance - 4,
        size=bucket.size,
    ).SerializeToString(deterministic=True)


def drawn(path: Path, first_step: int, steps: int, **others) -> list[list[str]]:
    settings = {
        "flip": False,
        "batch_size": BATCH,
        "seed": 3,
        "first_step": first_step,
        "num_examples": sum(HELD.values()),
        "buckets": BUCKETS,
        **others,
    }
    batches = training_batches([str(path)], PRESET, 64, **settings)
    found = []
    for batch in itertools.islice(batches, steps):
        ids = [name.decode() for name in batch["id"].numpy()]
        [size] = {name.partition("/")[0] for name in ids}
        width, height = map(int, size.split(" x "))
        assert batch["latent/mean"].shape == (BATCH, height // 8, width // 8, 4)
        found.append(ids)
    return found


def test_a_batch_is_of_one_bucket_and_nothing_is_lost(path: Path) -> None:
    of_bucket: dict[str, list[str]] = {}
    # Some ten epochs.
    for ids in drawn(path, 0, 50):
        of_bucket.setdefault(ids[0].partition("/")[0], []).extend(ids)
    for bucket, count in HELD.items():
        everything = sorted(f"{bucket.name}/{number}" for number in range(count))
        seen = of_bucket[bucket.name]
        epochs = [seen[i : i + count] for i in range(0, len(seen) - count, count)]
        assert len(epochs) > 7
        assert all(sorted(epoch) == everything for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 4


def test_order_depends_on_the_seed_alone_and_resumes_exactly(path: Path) -> None:
    whole = drawn(path, 0, 12)
    for step in (1, 9):
        assert drawn(path, step, 12 - step) == whole[step:]
    assert drawn(path, 0, 4, seed=4) != whole[:4]


def test_size_of_a_record() -> None:
    one = record(TALL, 0)
    assert size_of(one, 64) == (128, 64)
    assert size_of(small_runs.picture(0), 64) == 64
    parsed = parse_latents(tf.constant([one]), PRESET, size_of(one, 64))
    expected = np.random.default_rng([*TALL.size, 0]).standard_normal((2, 16, 8, 4))
    np.testing.assert_allclose(parsed["latent/mean"][0], expected[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_latents(tf.constant([one]), PRESET, 64)


def test_manifest_knows_its_buckets(tmp_path: Path) -> None:
    empty = BucketCounts(256, 32, {"train": 0, "eval": 1}, 0)
    manifest = LatentsManifest("tiny", 64, "abc", False, {"train": 19}, buckets=[*BUCKETS, empty])
    manifest.write(str(tmp_path))
    found = LatentsManifest.read(str(tmp_path))
    assert found == manifest
    assert found.trained_buckets == BUCKETS
    # Of two with as many pixels; that with most is held out alone.
    assert found.largest == (128, 64)
    assert LatentsManifest("tiny", 64, "abc", False, {"train": 1}).largest == 64


def test_of_a_few_scored_pictures_no_bucket_is_left_out() -> None:
    records = [*(record(SQUARE, n) for n in range(60)), record(WIDE, 0), record(TALL, 0)]
    found = held_out_pictures(records, frozenset()).all.records
    assert {size_of(one, 64) for one in found[:3]} == {(64, 64), (64, 128), (128, 64)}
    assert sorted(found) == sorted(records)
    # Apart from these, the order is that of their hashes, as ever.
    plain = held_out_pictures(records[:60], frozenset()).all.records
    assert [one for one in found[3:] if size_of(one, 64) == (64, 64)] == plain[1:]


def test_a_network_takes_other_sizes_than_it_was_built_for() -> None:
    square, oblong = (build_network("diffusion_model", PRESET, size) for size in (64, TALL.size))
    oblong.set_weights(square.get_weights())
    rng = np.random.default_rng(0)
    shapes = ((2, 16, 8, 4), (2, 8), (2, 77, 8))
    inputs = [tf.constant(rng.standard_normal(shape), tf.float32) for shape in shapes]
    expected = oblong(inputs, training=False)
    assert np.std(expected) > 0.01
    found = call_at_any_size(square, inputs, training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_held_out_losses_are_those_of_each_picture_by_itself() -> None:
    records = [record(SQUARE, 0), record(TALL, 0), record(SQUARE, 1), record(WIDE, 0)]
    tuner = small_runs.tuner(plain=True)
    together = tuner.score(ScoredPictures(records, 2, PRESET, 64))
    alone = [tuner.score(ScoredPictures([one], 2, PRESET, 64)) for one in records]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5)
    assert len({*together.tolist()}) == 8
