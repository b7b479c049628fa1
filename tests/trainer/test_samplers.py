"""The samplers against the values of diffusers' schedulers, and their pieces by hand.

`benchmarks/serving/schedulers.py` made `tests/data/schedulers/reference.npz`.
"""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving import request
from trainer.diffusion.noise_schedule import NoiseSchedule, alphas_cumprod
from trainer.diffusion.sampler import in_two_calls, initial_noise, sample, step_noise
from trainer.diffusion.samplers import (
    DEFAULT_SAMPLER,
    SAMPLERS,
    ancestral_sigmas,
    interpolated,
    is_sampler,
    karras_sigmas,
    sampling_plan,
    sigmas_of,
    timesteps_of,
)

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "schedulers" / "reference.npz"
NO_CONTEXT = tf.zeros([2, 1, 1])


# diffusers' DDIM is not KerasCV's, unless the last timestep is pure noise.
OTHER_SAMPLERS = tuple(name for name in SAMPLERS if name != "ddim")
SCHEDULES = {
    "epsilon": NoiseSchedule("epsilon"),
    "v_prediction": NoiseSchedule("v_prediction"),
    "zero_terminal_snr": NoiseSchedule("v_prediction", zero_terminal_snr=True),
}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


def formula(latent: tf.Tensor, timesteps: tf.Tensor) -> tf.Tensor:
    return 0.7 * latent + 0.3 * tf.sin(2.0 * latent + timesteps[:, None, None, None] / 200.0)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 25])
@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        *((sampler, kind) for sampler in OTHER_SAMPLERS for kind in SCHEDULES),
        ("ddim", "zero_terminal_snr"),
    ],
)
def test_samplers_are_diffusers(
    reference: dict[str, np.ndarray], sampler: str, kind: str, num_steps: int
) -> None:
    asked: list[tuple[float, np.ndarray]] = []

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        asked.append((float(timesteps[0]), latent.numpy()))
        return formula(latent, timesteps)

    def in_their_order(index: tf.Tensor) -> tf.Tensor:
        return tf.constant(reference["fresh_noise"])[index]

    result = sample(
        in_two_calls(predict, NO_CONTEXT, NO_CONTEXT),
        SCHEDULES[kind],
        noise=tf.constant(reference["noise"]),
        num_steps=tf.constant(num_steps),
        guidance_scale=tf.constant(1.0),
        sampler=tf.constant(sampler),
        fresh_noise=in_their_order,
    )
    of_zero = kind == "zero_terminal_snr"
    prefix = f"{kind}/{sampler}/v_prediction" if of_zero else f"{sampler}/{kind}"
    expected = {
        key: reference[f"{prefix}/{num_steps}/{key}"] for key in ("timesteps", "given", "result")
    }
    # Each step asks twice, with and without the context.
    timesteps, given = zip(*asked[::2], strict=True)
    np.testing.assert_allclose(timesteps, expected["timesteps"], rtol=1e-6)
    # Diffusers' latents are as large as the noise, 4096 times the signal here, and so are their
    # roundings.
    atol = 1e-3 if of_zero and sampler == "euler_a" else 1e-4
    np.testing.assert_allclose(given, expected["given"], rtol=0, atol=atol)
    np.testing.assert_allclose(result, expected["result"], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("sampler", "zero_terminal_snr"),
    [*((name, False) for name in OTHER_SAMPLERS), *((name, True) for name in SAMPLERS)],
)
def test_timesteps_are_diffusers_for_every_number_of_steps(
    reference: dict[str, np.ndarray], sampler: str, zero_terminal_snr: bool
) -> None:
    ours = [
        sampling_plan(sampler, tf.constant(number), zero_terminal_snr).timesteps
        for number in range(1, 101)
    ]
    expected = reference[f"{'zero_terminal_snr/' * zero_terminal_snr}{sampler}/timesteps"]
    np.testing.assert_allclose(np.concatenate(ours), expected, rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_zero_terminal_snr_drawing_begins_with_noise_alone(sampler: str) -> None:
    for number in (1, 3, 7, 1000):
        plan = sampling_plan(sampler, tf.constant(number), zero_terminal_snr=True)
        assert (float(plan.timesteps[0]), plan.timesteps.shape) == (999.0, (number,))
        assert float(plan.alpha_bar[0]) <= 2.0**-23
        assert float(plan.initial_scale) == pytest.approx(1.0)
        assert all(np.isfinite(values).all() for values in plan)


def test_a_single_trace_serves_every_sampler() -> None:
    traces = 0

    @tf.function(autograph=False)
    def plan(sampler: tf.Tensor, num_steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        nonlocal traces
        traces += 1
        return sampling_plan(sampler, num_steps)

    for name in SAMPLERS:
        for number in (1, 2, 3, 40):
            steps = tf.constant(number)
            for in_graph, alone in zip(
                plan(tf.constant(name), steps), sampling_plan(name, steps), strict=True
            ):
                np.testing.assert_array_equal(in_graph, alone)
                assert in_graph.shape in ((), (number,))
    assert traces == 1


def test_plan_of_ddim_by_hand() -> None:
    alphas = alphas_cumprod()[[999, 500, 0]]
    plan = sampling_plan("ddim", tf.constant(3))
    np.testing.assert_array_equal(plan.timesteps, [999.0, 500.0, 0.0])
    np.testing.assert_array_equal(plan.alpha_bar, alphas)
    np.testing.assert_allclose(plan.of_clean, np.sqrt([*alphas[1:], 1.0]), rtol=1e-6)
    np.testing.assert_allclose(plan.of_noise, np.sqrt([*(1 - alphas[1:]), 0.0]), rtol=1e-6)
    assert not np.any([plan.of_latent, plan.of_clean_before, plan.of_fresh_noise])


def test_sigmas_by_hand() -> None:
    np.testing.assert_allclose(sigmas_of(np.array([0.5, 0.1, 0.2], np.float32)), [1.0, 3.0, 2.0])
    # 7th powers of 3, 2 and 1.
    np.testing.assert_allclose(karras_sigmas(1.0, 3.0**7, tf.constant(3)), [2187.0, 128.0, 1.0])
    np.testing.assert_allclose(karras_sigmas(1.0, 128.0, tf.constant(1)), [128.0])
    table = np.array([0.5, 1.0, 4.0])
    np.testing.assert_allclose(
        timesteps_of(tf.constant([9.0, 4.0, 2.0, 1.0, 0.5, 0.1], tf.float64), table),
        [2.0, 2.0, 1.5, 1.0, 0.0, 0.0],
    )
    np.testing.assert_allclose(
        interpolated(table, tf.constant([2.0, 1.5, 0.25, 0.0], tf.float64)), [4.0, 2.5, 0.625, 0.5]
    )
    down, up = ancestral_sigmas(
        tf.constant([5.0, 2.0], tf.float64), tf.constant([4.0, 0.0], tf.float64)
    )
    np.testing.assert_allclose(down, [3.2, 0.0])
    np.testing.assert_allclose(up, [2.4, 0.0])


def test_fresh_noise_is_of_the_seed_and_the_step_whatever_the_batch() -> None:
    seed = tf.constant([7, -3])
    alone, four = (
        [step_noise(seed, tf.constant(i), tf.constant([batch, 4, 4, 4])) for i in range(3)]
        for batch in (1, 4)
    )
    for one, many in zip(alone, four, strict=True):
        np.testing.assert_array_equal(one[0], many[0])
    first = initial_noise(seed, tf.constant(1), (4, 4, 4))
    other = step_noise(tf.constant([8, -3]), tf.constant(0), tf.constant([1, 4, 4, 4]))
    assert len({np.asarray(noise).tobytes() for noise in (*alone, first, other)}) == 5
    assert abs(np.std(np.stack(four)) - 1.0) < 0.1


def test_names_are_those_that_clients_offer() -> None:
    assert tuple(SAMPLERS) == request.SAMPLERS
    assert request.DEFAULT_SAMPLER == DEFAULT_SAMPLER
    assert all(is_sampler(tf.constant(name)) for name in SAMPLERS)
    assert not any(is_sampler(tf.constant(name)) for name in ("DDIM", "ddi", ""))


@pytest.mark.parametrize("sampler", ["euler_a", tf.constant("ddim")])
def test_a_sampler_that_may_need_fresh_noise_is_given_some(sampler: str | tf.Tensor) -> None:
    with pytest.raises(ValueError, match="needs fresh noise"):
        sample(
            lambda latent, timesteps: [latent, latent],
            SCHEDULES["epsilon"],
            noise=tf.zeros([2, 2, 2, 4]),
            num_steps=tf.constant(1),
            guidance_scale=tf.constant(1.0),
            sampler=sampler,
        )
