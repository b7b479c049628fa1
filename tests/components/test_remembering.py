"""What a model remembers: nearest training pictures, and the metrics that are made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import measured_pictures
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from components.evaluator.metrics import chance_of_copies, relative_difference
from components.loss_scorer.nearest import (
    ClipFeatures,
    LatentFeatures,
    Nearest,
    features_of,
    nearest,
    nearest_hundredth,
)
from components.loss_scorer.remembering import Remembering
from components.measures.clip import Clip
from components.tfrecords import write_shard
from trainer.data.held_out import different_pictures
from trainer.data.latents import make_latent_example
from trainer.presets import LATENT_SCALE

LATENT = (8, 8, 4)


def record(index: int, mean: np.ndarray, mirror: np.ndarray | None = None, name="") -> bytes:
    return make_latent_example(
        example_id=name or f"id{index}",
        tokens=np.full(77, index),
        context=np.zeros((77, 8)),
        mean=mean,
        log_variance=np.zeros(LATENT),
        mirror_mean=mirror,
        mirror_log_variance=None if mirror is None else np.zeros(LATENT),
    ).SerializeToString(deterministic=True)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Means as float16 has them, as records do."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *LATENT)).astype(np.float16).astype(np.float32)


def found_in_latents(
    means: np.ndarray, training: Iterable[bytes], latent_shape: tuple[int, ...], flip: bool
) -> list[Nearest]:
    features = LatentFeatures(latent_shape, flip)
    return nearest(features.of_means(means), training, features)


def test_the_nearest_is_that_of_a_plain_loop():
    # More than are looked at together, and than count as neighbours.
    training, wanted = pictures(300), pictures(5, seed=1)
    wanted[2] = training[271] + 0.01
    found = found_in_latents(
        wanted, (record(i, m) for i, m in enumerate(training)), LATENT, flip=False
    )
    for picture, one in zip(wanted, found, strict=True):
        apart = np.sqrt(np.mean((training - picture).astype(float) ** 2, axis=(1, 2, 3)))
        first, *others = sorted(apart)
        assert one.distance == pytest.approx(first, rel=1e-3)
        assert one.nearness == pytest.approx(first / np.mean(others[:50]), rel=1e-3)
        assert one.record == record(int(np.argmin(apart)), training[np.argmin(apart)])
    assert found[2].nearness < 0.02
    assert min(one.nearness for i, one in enumerate(found) if i != 2) > 0.8


def test_a_copy_of_a_mirror_image_is_found():
    training = pictures(20)
    records = [record(i, m, m[:, ::-1]) for i, m in enumerate(training)]
    [one] = found_in_latents(training[3:4, :, ::-1], records, LATENT, flip=True)
    assert (one.mirrored, one.record) == (True, records[3])
    assert one.nearness == pytest.approx(0.0, abs=1e-6)
    [plain] = found_in_latents(training[3:4], records, LATENT, flip=True)
    assert not plain.mirrored
    assert plain.nearness == pytest.approx(0.0, abs=1e-6)
    [missed] = found_in_latents(training[3:4, :, ::-1], records, LATENT, flip=False)
    assert missed.nearness > 0.7


def test_with_clip_the_nearest_is_that_of_its_embeddings():
    clip = Clip(measured_pictures.EVERYTHING.clip_model)

    def decode(latents: tf.Tensor) -> tf.Tensor:
        pixels = tf.repeat(tf.repeat(latents[..., :3] / LATENT_SCALE, 8, axis=1), 8, axis=2)
        return tf.cast(tf.clip_by_value(127.5 + 60.0 * pixels, 0.0, 255.0), tf.uint8)

    training, wanted = pictures(30), pictures(3, seed=1)
    wanted[1] = training[7, :, ::-1]
    features = ClipFeatures(clip, decode, LATENT, flip=True, batch_size=8)
    drawn = decode(tf.constant(LATENT_SCALE * wanted)).numpy()
    np.testing.assert_array_equal(features.of(wanted, drawn), features.of_means(wanted))

    records = [record(i, m) for i, m in enumerate(training)]
    found = nearest(features.of_means(wanted), records, features)
    seen = decode(tf.constant(LATENT_SCALE * training)).numpy()
    sides = [clip.image_embeddings(x) for x in (seen, seen[:, :, ::-1])]
    for one, embedding in zip(found, clip.image_embeddings(drawn), strict=True):
        cosines = [
            side @ embedding / np.linalg.norm(side, axis=1) / np.linalg.norm(embedding)
            for side in sides
        ]
        apart = np.sqrt(np.maximum(2 - 2 * np.max(cosines, axis=0), 0) / len(embedding))
        assert one.record == records[int(np.argmin(apart))]
        assert one.distance == pytest.approx(np.min(apart), abs=1e-4)
        assert one.mirrored == (np.max(cosines[1]) > np.max(cosines[0]))
    assert (found[1].record, found[1].mirrored) == (records[7], True)
    assert found[1].nearness < 1e-3


def test_several_captions_of_a_picture_are_one_neighbour():
    training = pictures(4)
    wanted = pictures(1, seed=1)
    once = found_in_latents(
        wanted, (record(i, m) for i, m in enumerate(training)), LATENT, flip=False
    )
    often = [record(i, training[i], name=f"{i}/{k}") for i in range(4) for k in range(9)]
    assert found_in_latents(wanted, often, LATENT, flip=False)[0].nearness == once[0].nearness


def test_of_too_few_training_pictures_nothing_is_said():
    assert found_in_latents(pictures(2), [], LATENT, flip=False) == []
    [alone] = found_in_latents(pictures(1), [record(0, pictures(1)[0])], LATENT, flip=False)
    assert math.isnan(alone.nearness)


def test_large_pictures_are_compared_as_small_ones():
    means = np.random.default_rng(0).normal(size=(2, 40, 32, 4))
    small = features_of(means)
    # By areas of 3 x 2, of which the last are what is left.
    assert small.shape == (2, 14 * 16 * 4)
    grid = small.reshape(2, 14, 16, 4)
    np.testing.assert_allclose(grid[1, 2, 5], means[1, 6:9, 10:12].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(grid[0, 13, 0], means[0, 39:, :2].mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(
        features_of(means[:, :8, :8]), means[:, :8, :8].reshape(2, -1).astype(np.float32)
    )


def test_what_is_looked_at_is_chosen_by_hashes(tmp_path):
    means = pictures(40)
    train = [record(i, m) for i, m in enumerate(means[:30])]
    held_out = [record(i, m) for i, m in enumerate(means[30:], 30)]
    paths = []
    for order, records in (("one", train), ("other", train[::-1])):
        paths.append(str(tmp_path / f"{order}.gz"))
        write_shard(paths[-1], records, str(tmp_path))
    one, other = (Remembering.planned([p], False, held_out, 100, 12) for p in paths)
    # Never more than judge, each as often as there would be rows of so many.
    assert (len(one.scored), len(one.drawn), len(one.held_out), one.num_draws) == (10, 12, 10, 1)
    assert (one.scored, one.drawn) == (other.scored, other.drawn)
    assert set(one.scored) < set(one.drawn) < set(train)
    assert list(one.text_parts) == list(one.held_out)[:10]
    assert list(one.training_records()) == train
    few = Remembering.planned(paths[:1], False, held_out, 4, 0)
    assert (few.scored, few.drawn) == (one.scored[:4], [])
    none = Remembering.planned(paths[:1], False, [], 4, 4)
    assert (none.scored, none.drawn) == ([], [])
    assert different_pictures(train, 5).records == one.drawn[:5]


def sums(values: np.ndarray) -> dict[int, np.ndarray]:
    return {group: np.array([1.0, value]) for group, value in enumerate(values)}


def test_the_interval_of_a_difference_is_welchs():
    rng = np.random.default_rng(0)
    held_out, train = rng.normal(1.0, 0.2, 50), rng.normal(0.7, 0.05, 24)
    found = relative_difference(sums(held_out), sums(train), sums(held_out))
    scale = held_out.mean()
    assert found.unsampled_value == pytest.approx((held_out.mean() - train.mean()) / scale)
    welch = stats.ttest_ind(held_out, train, equal_var=False)
    assert found.sample_degrees_of_freedom == math.floor(welch.df)
    error = (held_out.mean() - train.mean()) / welch.statistic / scale
    assert found.sample_standard_deviation == pytest.approx(error)
    alone = relative_difference(sums(held_out[:1]), sums(train), sums(held_out[:1]))
    assert math.isnan(alone.sample_standard_deviation)
    assert math.isnan(relative_difference({}, sums(train), {}).unsampled_value)


def test_the_nearest_hundredth():
    values = list(np.random.default_rng(0).permutation(250) / 250)
    limit = nearest_hundredth(values)
    assert sum(value < limit for value in values) == 2
    assert nearest_hundredth([0.5, 0.25]) == 0.25
    assert math.isnan(nearest_hundredth([]))


@pytest.mark.parametrize(("number", "others"), [(4, 3), (3, 5)])
def test_chance_is_that_of_all_orders(number, others):
    """Of every order of values of one distribution, as often as many are the nearest."""
    counts = []
    for places in itertools.combinations(range(number + others), others):
        counts.append(sum(place < places[0] for place in set(range(number + others)) - set(places)))
    for count in range(number + 1):
        expected = np.mean(np.array(counts) >= count)
        assert chance_of_copies(count, number, others) == pytest.approx(expected)


def test_a_model_that_copies_nothing_is_hardly_ever_suspected():
    """Of sets of one distribution, fewer than one in a hundred; more than the allowed nearer."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(3000):
        drawn, held_out = rng.normal(size=16), rng.normal(size=230)
        count = int(np.sum(drawn < nearest_hundredth(held_out)))
        alarms += chance_of_copies(count, 16, 230) <= 0.01
    assert alarms / 3000 < 0.015
    assert chance_of_copies(16, 16, 230) < 1e-12
