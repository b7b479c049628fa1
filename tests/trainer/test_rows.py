"""Pictures of a batch that have numbers, samplers, seeds and sizes of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small_runs
import tensorflow as tf

from serving.png import encode
from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.diffusion.sampler import (
    Predict,
    PredictBoth,
    in_one_call,
    in_two_calls,
    initial_noise,
    initial_noise_of_rows,
    sample,
    step_noise,
    step_noise_of_rows,
)
from trainer.diffusion.samplers import SAMPLERS, plans_of_rows, sampling_plan
from trainer.export.drawing_memory import DIFFUSION_MODEL, DrawingMemory
from trainer.export.rows import in_groups
from trainer.export.saved_models import DecoderModule, DiffusionModelModule, ImageEncoderModule
from trainer.weights.base_model import BaseModel

IMAGE_SIZE = 64
SCHEDULE = NoiseSchedule("epsilon")
# Sampler, steps, guidance scale, seed, height, width: of none of them all rows have the same.
ROWS = (
    ("ddim", 4, 3.0, (5, -6), 0, 0),
    ("euler_a", 7, 1.5, (5, -6), 64, 64),
    ("dpmpp_2m", 1, 7.5, (2**31 - 1, -(2**31)), 40, 96),
    ("dpmpp_2m", 5, 3.0, (0, 1), 64, 0),
    ("euler_a", 1, 0.0, (1, 0), 40, 96),
    ("ddim", 2, 3.0, (0, 0), 96, 40),
    ("euler_a", 3, 5.0, (9, 9), 64, 64),
)


@pytest.fixture(scope="module")
def model() -> DiffusionModelModule:
    network = small_runs.plain_network()
    return DiffusionModelModule(network, small_runs.preset(), IMAGE_SIZE, image_to_image=True)


@pytest.fixture(scope="module")
def contexts() -> dict[str, np.ndarray]:
    values = np.random.default_rng(3).standard_normal((2, len(ROWS), 77, 8)).astype("f")
    return dict(zip(("context", "unconditional_context"), values, strict=True))


def of_rows(contexts: dict[str, np.ndarray], rows: Any = ROWS) -> dict[str, tf.Tensor]:
    sampler, num_steps, guidance_scale, seed, height, width = zip(*rows, strict=True)
    return {
        **{name: tf.constant(values[: len(rows)]) for name, values in contexts.items()},
        "num_steps": tf.constant(num_steps),
        "guidance_scale": tf.constant(guidance_scale),
        "seed": tf.constant(seed),
        "sampler": tf.constant(sampler),
        "height": tf.constant(height),
        "width": tf.constant(width),
    }


def alone(contexts: dict[str, np.ndarray], place: int) -> dict[str, tf.Tensor]:
    sampler, num_steps, guidance_scale, seed, height, width = ROWS[place]
    return {
        **{name: tf.constant(values[place : place + 1]) for name, values in contexts.items()},
        "num_steps": tf.constant(num_steps),
        "guidance_scale": tf.constant(guidance_scale),
        "seed": tf.constant(seed),
        "sampler": tf.constant(sampler),
        "height": tf.constant(height),
        "width": tf.constant(width),
    }


def latent_of(text: tf.Tensor) -> np.ndarray:
    return tf.io.parse_tensor(text, tf.float32).numpy()


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    # Kernels round differently at another size of batch, and every step doubles that.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("sampler", [*SAMPLERS, None])
def test_plans_of_rows_are_those_of_each_alone(sampler: str | None) -> None:
    names = [sampler] * 4 if sampler else ["euler_a", "ddim", "dpmpp_2m", "ddim"]
    steps = [1, 25, 2, 7]
    plans = plans_of_rows(sampler or tf.constant(names), tf.constant(steps))
    for place, (name, number) in enumerate(zip(names, steps, strict=True)):
        for values, expected in zip(plans, sampling_plan(name, tf.constant(number)), strict=True):
            row = values[place].numpy()
            np.testing.assert_array_equal(row[:number] if row.ndim else row, expected)
            assert not np.any(row[number:] if row.ndim else 0.0)


def test_noise_of_rows_is_that_of_each_alone() -> None:
    seeds, index = tf.constant([[7, -3], [0, 0], [7, -3]]), tf.constant([0, 3, 2])
    first = initial_noise_of_rows(seeds, (4, 6, 4))
    fresh = step_noise_of_rows(seeds, index, tf.constant([3, 4, 6, 4]))
    for place in range(3):
        expected = initial_noise(seeds[place], tf.constant(1), (4, 6, 4))
        np.testing.assert_array_equal(first[place : place + 1], expected)
        expected = step_noise(seeds[place], index[place], tf.constant([1, 4, 6, 4]))
        np.testing.assert_array_equal(fresh[place : place + 1], expected)


@pytest.mark.parametrize("both", [in_one_call, in_two_calls])
def test_a_row_that_is_done_is_left_alone_to_the_bit(
    both: Callable[[Predict, tf.Tensor, tf.Tensor], PredictBoth],
) -> None:
    names, steps = ["ddim", "dpmpp_2m", "euler_a", "euler_a"], [3, 8, 1, 5]
    noise = tf.random.stateless_normal([4, 2, 2, 4], [1, 2])
    fresh = tf.random.stateless_normal([8, 4, 2, 2, 4], [3, 4])
    scales = [0.0, 1.0, 7.5, 2.0]

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        return 0.5 * latent + timesteps[:, None, None, None] / 900.0 + context[:, :, None]

    contexts = tf.reshape(tf.range(4.0), [4, 1, 1])

    def drawn(of: slice, **row: Any) -> tf.Tensor:
        return sample(
            both(predict, contexts[of], 0.1 * contexts[of]), SCHEDULE, noise=noise[of], **row
        )

    def fresh_of_rows(index: tf.Tensor) -> tf.Tensor:
        return tf.gather_nd(fresh, tf.stack([index, tf.range(4)], axis=-1))

    together = drawn(
        slice(None),
        num_steps=tf.constant(steps),
        guidance_scale=tf.constant(scales),
        sampler=tf.constant(names),
        fresh_noise=fresh_of_rows,
    )
    for place, (name, number) in enumerate(zip(names, steps, strict=True)):
        expected = drawn(
            slice(place, place + 1),
            num_steps=tf.constant(number),
            guidance_scale=tf.constant(scales[place]),
            sampler=name,
            fresh_noise=lambda index, place=place: fresh[index, place : place + 1],
        )
        np.testing.assert_array_equal(together[place : place + 1], expected)


def test_each_row_is_the_picture_that_it_is_alone(
    model: DiffusionModelModule, contexts: dict[str, np.ndarray]
) -> None:
    drawn = model.rows(**of_rows(contexts))
    assert drawn["problem_bytes"].numpy().tolist() == [b""] * len(ROWS)
    for place in range(len(ROWS)):
        expected = model.sampled_at_size(**alone(contexts, place))["latent"][0].numpy()
        assert_close(latent_of(drawn["latent_bytes"][place]), expected)


def test_a_row_alone_is_the_picture_of_the_former_signatures_to_the_bit(
    model: DiffusionModelModule, contexts: dict[str, np.ndarray]
) -> None:
    for place in range(3):
        request = alone(contexts, place)
        row = {
            name: value if name.endswith("context") else value[None]
            for name, value in request.items()
        }
        np.testing.assert_array_equal(
            latent_of(model.rows(**row)["latent_bytes"][0]),
            model.sampled_at_size(**request)["latent"][0],
        )


def test_an_impossible_row_is_told_and_the_others_are_drawn(
    model: DiffusionModelModule, contexts: dict[str, np.ndarray]
) -> None:
    rows = [list(ROWS[3])] * 7
    for place, column, value in (
        *((0, 1, 0), (1, 1, 1001), (2, 2, float("nan")), (3, 0, "ddpm")),
        *((4, 4, 44), (5, 5, -8)),
    ):
        rows[place] = rows[place].copy()
        rows[place][column] = value
    drawn = model.rows(**of_rows(contexts, rows))
    assert drawn["problem_bytes"].numpy().tolist() == [
        b"num_steps must be 1 to 1000, and is 0",
        b"num_steps must be 1 to 1000, and is 1001",
        b"guidance_scale must be finite, and is nan",
        f"sampler must be one of {', '.join(SAMPLERS)}, and is ddpm".encode(),
        b"height must be a multiple of 8, 0 for 64, and is 44",
        b"width must be a multiple of 8, 0 for 64, and is -8",
        b"",
    ]
    assert drawn["latent_bytes"].numpy().tolist()[:6] == [b""] * 6
    request = of_rows(contexts, rows)
    expected = model.rows(**{name: values[6:7] for name, values in request.items()})
    assert_close(*(latent_of(found["latent_bytes"][-1]) for found in (drawn, expected)))


def test_rows_begin_with_pictures_and_masks_of_their_own(
    model: DiffusionModelModule, contexts: dict[str, np.ndarray]
) -> None:
    sizes = [(8, 8), (8, 8), (5, 12), (8, 8), (5, 12), (8, 8)]
    strengths = [0.5, 0.0, 0.7, 1.0, 0.9, 0.4]
    latents = [
        tf.random.stateless_normal([*size, 4], [place, 1]) for place, size in enumerate(sizes)
    ]
    masks: list[np.ndarray | None] = [None] * 6
    for place in (3, 4, 5):
        masks[place] = np.zeros([8 * side for side in sizes[place]], np.uint8)
        masks[place][17:30, 9] = 3
    files = [b"" if mask is None else encode(np.stack([mask] * 3, -1)) for mask in masks]
    request = of_rows(contexts, ROWS[:6])
    del request["height"], request["width"]
    request["latent_bytes"] = tf.stack([tf.io.serialize_tensor(latent) for latent in latents])
    request["strength"] = tf.constant(strengths)
    drawn = model.rows_from_image(**request, mask_bytes=tf.constant(files))
    assert drawn["problem_bytes"].numpy().tolist() == [b""] * 6
    for place, mask in enumerate(masks):
        single = alone(contexts, place)
        del single["height"], single["width"]
        single |= {"latent": latents[place][None], "strength": tf.constant(strengths[place])}
        expected = (
            model.from_image(**single)
            if mask is None
            else model.inpaint(**single, mask=tf.constant(mask[None]))
        )["latent"][0].numpy()
        assert_close(latent_of(drawn["latent_bytes"][place]), expected)

    request["strength"] = tf.constant([1.5, *strengths[1:]])
    files[3] = encode(np.zeros((8, 8, 3), np.uint8))
    drawn = model.rows_from_image(**request, mask_bytes=tf.constant(files))
    assert drawn["problem_bytes"].numpy().tolist() == [
        *(b"strength must be 0 to 1, and is 1.500000", b"", b""),
        b"mask must have the pixels of latent's picture; its height, and is 8",
        *(b"", b""),
    ]


def test_pictures_of_several_sizes_are_decoded_and_encoded_together() -> None:
    base_model = BaseModel.locate(small_runs.preset(), IMAGE_SIZE, "random")
    decoder = DecoderModule(base_model.build("decoder"))
    encoder = ImageEncoderModule(base_model.build("image_encoder"))
    latents = [
        tf.random.stateless_normal([*size, 4], [place, 1])
        for place, size in enumerate([(8, 8), (5, 12), (8, 8)])
    ]
    texts = tf.stack([*(tf.io.serialize_tensor(latent) for latent in latents), b""])
    files = decoder.rows(texts)["image_bytes"]
    encoded = encoder.rows(files)["latent_bytes"]
    assert files[3] == encoded[3] == b""
    for latent, file, text in zip(latents, files, encoded, strict=False):
        pixels = tf.io.decode_png(file)
        expected = decoder.serve(latent[None])["generated_images"][0]
        assert np.abs(pixels.numpy().astype(int) - expected.numpy()).max() <= 1
        assert_close(latent_of(text), encoder.serve(pixels[None])["latent"][0].numpy())


def test_no_more_rows_are_drawn_at_once_than_there_is_memory_for() -> None:
    sides = tf.constant([[8, 8], [4, 4], [8, 8], [8, 8], [4, 4], [8, 8]])
    wanted = tf.constant([True, True, True, True, True, False])
    groups = []

    def draw(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
        groups.append((places.numpy().tolist(), side.numpy().tolist()))
        return tf.strings.as_string(places)

    drawn = in_groups(sides, wanted, lambda side: 16 // side[0], draw)
    assert groups == [([0, 2], [8, 8]), ([1, 4], [4, 4]), ([3], [8, 8])]
    assert drawn.numpy().tolist() == [b"0", b"1", b"2", b"3", b"4", b""]
    memory = DrawingMemory(per_position=(1e6,), per_pair=(1e3,))
    for positions, number in ((1000.0, 4), (2000.0, 1), (1e6, 1), (1e-9, 2**16)):
        assert memory.together(DIFFUSION_MODEL, tf.constant(positions, tf.float64)) == number
