from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.data.latents import (
    LatentsManifest,
    make_latent_example,
    parse_latents,
    sample_posterior,
    training_batches,
)
from trainer.presets import Preset


def write_latents(
    path: Path, preset: Preset, count: int, mirror: bool = False, repeats: list[int] | None = None
) -> None:
    rng = np.random.default_rng(0)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for i in range(count):
            moments = rng.standard_normal((4, 8, 8, 4))
            example = make_latent_example(
                example_id=f"{i:03d}",
                tokens=np.full(77, i),
                context=rng.standard_normal((77, preset.text_encoder.width)),
                mean=moments[0],
                log_variance=moments[1] - 4,
                mirror_mean=moments[2] if mirror else None,
                mirror_log_variance=moments[3] if mirror else None,
                repeats=repeats[i] if repeats else None,
            )
            writer.write(example.SerializeToString())


def ids(
    path: Path,
    preset: Preset,
    first_step: int,
    steps: int,
    seed: int = 0,
    num_views: int | None = None,
) -> list[bytes]:
    batches = training_batches(
        [str(path)],
        preset,
        64,
        flip=False,
        batch_size=4,
        seed=seed,
        first_step=first_step,
        num_examples=10,
        num_views=num_views,
    )
    return [i for _ in range(steps) for i in next(batches)["id"].numpy()]


def test_record_round_trip_is_exact_in_half_precision(small_preset: Preset) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 49408, 77)
    context = rng.standard_normal((77, 8)).astype(np.float16)
    mean, log_variance, mirror, mirror_log = rng.standard_normal((4, 8, 8, 4)).astype(np.float16)
    example = make_latent_example(
        example_id="abc",
        tokens=tokens,
        context=context,
        mean=mean,
        log_variance=log_variance,
        mirror_mean=mirror,
        mirror_log_variance=mirror_log,
    )
    parsed = parse_latents(tf.constant([example.SerializeToString()]), small_preset, 64, flip=True)
    assert parsed["id"].numpy().tolist() == [b"abc"]
    np.testing.assert_array_equal(parsed["tokens"][0], tokens)
    for name, expected in {
        "context": context,
        "latent/mean": mean,
        "latent/log_variance": log_variance,
        "latent/mirror_mean": mirror,
        "latent/mirror_log_variance": mirror_log,
    }.items():
        assert parsed[name].dtype == tf.float32
        np.testing.assert_array_equal(parsed[name][0], expected.astype(np.float32))


def test_posterior_sample_by_hand() -> None:
    mean, log_variance, noise = np.random.default_rng(0).standard_normal((3, 2, 8, 8, 4))
    expected = 0.18215 * (mean + np.exp(log_variance / 2) * noise)
    actual = sample_posterior(*(tf.constant(x, tf.float32) for x in (mean, log_variance, noise)))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_every_epoch_holds_every_example_once_in_a_new_order(
    small_preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "latents.gz"
    write_latents(path, small_preset, 10)
    drawn = ids(path, small_preset, 0, 10)
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    everything = sorted(f"{i:03d}".encode() for i in range(10))
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed_alone_and_resumes_exactly(
    small_preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "latents.gz"
    write_latents(path, small_preset, 10)
    drawn = ids(path, small_preset, 0, 9)
    assert drawn == ids(path, small_preset, 0, 9)
    assert drawn != ids(path, small_preset, 0, 9, seed=1)
    assert ids(path, small_preset, 7, 2) == drawn[28:]


REPEATS = [3, 1, 1, 1, 5, 1, 1, 1, 2, 1]
VIEWS = sum(REPEATS)


def test_every_epoch_holds_every_example_as_often_as_it_says(
    small_preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "latents.gz"
    write_latents(path, small_preset, 10, repeats=REPEATS)
    # Four epochs of 17 are 17 batches of four.
    drawn = ids(path, small_preset, 0, VIEWS, num_views=VIEWS)
    epochs = [drawn[i : i + VIEWS] for i in range(0, 4 * VIEWS, VIEWS)]
    everything = sorted(
        f"{i:03d}".encode() for i, count in enumerate(REPEATS) for _ in range(count)
    )
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # They are shuffled, not one after the other.
    assert all(
        any(epoch[i : i + 5] != [b"004"] * 5 for i in [epoch.index(b"004")]) for epoch in epochs
    )


def test_repeats_resume_exactly(small_preset: Preset, tmp_path: Path) -> None:
    path = tmp_path / "latents.gz"
    write_latents(path, small_preset, 10, repeats=REPEATS)
    drawn = ids(path, small_preset, 0, 12, num_views=VIEWS)
    for step in (1, 4, 5, 9, 11):
        resumed = ids(path, small_preset, step, 12 - step, num_views=VIEWS)
        assert resumed == drawn[4 * step :]
    assert drawn != ids(path, small_preset, 0, 12, seed=1, num_views=VIEWS)


def test_order_without_repeats_is_that_of_records_that_say_nothing_of_them(
    small_preset: Preset, tmp_path: Path
) -> None:
    write_latents(tmp_path / "plain.gz", small_preset, 10)
    write_latents(tmp_path / "ones.gz", small_preset, 10, repeats=[1] * 10)
    plain = ids(tmp_path / "plain.gz", small_preset, 0, 8)
    assert ids(tmp_path / "ones.gz", small_preset, 0, 8, num_views=10) == plain


def test_size_of_an_epoch() -> None:
    counts = {"train": 9, "eval": 1}
    assert LatentsManifest("tiny", 64, "abc", False, counts).epoch_size == 9
    assert LatentsManifest("tiny", 64, "abc", False, counts, views=40).epoch_size == 40


def test_manifest_round_trip(tmp_path: Path) -> None:
    manifest = LatentsManifest("tiny", 64, "abc", False, {"train": 9, "eval": 1})
    manifest.write(str(tmp_path))
    assert LatentsManifest.read(str(tmp_path)) == manifest
